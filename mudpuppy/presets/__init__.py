"""Presets: settings to start from, by name; data, each value with where it comes from."""
