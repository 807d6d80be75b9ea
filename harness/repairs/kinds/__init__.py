"""The repairs themselves, by what they touch."""
