"""Evidence: a checkpoint folder, a run or a live model, turned into the facts that probes judge."""
