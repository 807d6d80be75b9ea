"""A model object in memory, by its attributes alone."""
