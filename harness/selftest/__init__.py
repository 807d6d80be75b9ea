"""Is the doctor any good? Healthy checkpoints it must keep silent about, damages it must name."""
