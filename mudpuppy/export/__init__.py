"""Export a model for the programs that serve it."""
