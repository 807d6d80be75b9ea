"""Ways to start the workers of cells: a clean interpreter each, forks of a warm one, Ray."""
