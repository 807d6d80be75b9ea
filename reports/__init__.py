"""What a person reads: console, markdown and JSON writers, and the commands that print them."""
