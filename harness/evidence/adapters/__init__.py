"""Adapters: their settings, their tensors, and the base that they are held against."""
