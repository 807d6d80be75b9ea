"""Quantised building blocks for code of one's own: levels, products, norms (docs/ops.md)."""
