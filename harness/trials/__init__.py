"""What is done with the settings of a cell, one file for each `trial` of a scenario."""
