"""Data: reading datasets with errors that name the line, and rendering samples with labels."""
