"""Probes, one file per failure; `harness.registry` finds them by walking this folder."""
