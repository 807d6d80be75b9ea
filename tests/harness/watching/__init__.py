"""Tests of what is measured on a live model."""
