"""The doctor itself: the visit, what counts, and what it says."""
