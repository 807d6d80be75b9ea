"""The twin: every training cell once more, in plain torch, from what was recorded of it."""
