"""Builders of healthy checkpoints, by who writes such ones, each with the real library."""
