"""The record of a training, and the checkpoints of one run beside each other."""
