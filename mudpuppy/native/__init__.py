"""C sources compiled for this very processor at first use, and used only if they pass a test."""
