"""Where a checkpoint comes from: base, adapter and merge, by their values."""
