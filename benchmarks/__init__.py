"""What is measured against the best there is: one registry of rows, one table, the results kept."""
