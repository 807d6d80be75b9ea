"""What is measured on a live model while the engine trains it; no opinions, no engine."""
