"""Repairs that are safe and certain, on a copy: settings and tensor names, never values."""
