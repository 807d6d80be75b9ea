"""Know the machine: what is there, and which traps of ROCm and torch it is in."""
