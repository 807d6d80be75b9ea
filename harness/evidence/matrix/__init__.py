"""What a cell of the pressure matrix measured; no checkpoint offers it."""
