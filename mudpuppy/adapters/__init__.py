"""Adapters: attach, merge and verify; the one place that touches PEFT's adapter state."""
