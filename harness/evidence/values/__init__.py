"""The values of weights: read in chunks, in numpy, without torch."""
