"""The folder itself: names, headers, indexes, JSON, pickles, provenance; no value of a weight."""
