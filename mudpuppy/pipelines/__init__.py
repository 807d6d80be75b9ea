"""Whole workflows, from data to a model that somebody talks to."""
