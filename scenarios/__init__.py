"""Scenario files and their loader: data, no behaviour."""
