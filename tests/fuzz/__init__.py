"""Hostile checkpoints by the hundred thousand: the doctor must survive each and touch nothing."""
