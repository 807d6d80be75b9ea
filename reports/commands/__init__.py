"""Command-line entry points; they sit on top because a command ends in a report."""
