"""GGUF files: a bounded reader of their headers, and what they say."""
