"""Temporal unlearning, from records to a served GGUF: what came after a year is refused."""
