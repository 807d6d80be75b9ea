"""The pass over all values in compiled C, where there is a compiler; numpy does the same."""
