"""What several probes share when they weigh evidence; probes never import each other."""
