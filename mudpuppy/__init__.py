"""The training engine: it trains and writes numbers, and knows nothing above it."""
