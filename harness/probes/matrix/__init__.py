"""Probes of what the matrix observed of a run (MPD7xx); a folder alone never shows it."""
