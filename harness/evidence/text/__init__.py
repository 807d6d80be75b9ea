"""Tokenizer, chat template, stop tokens, positions: what decides how text becomes ids."""
