"""`python -m mudpuppy.pipelines.temporal` is `mud-puppy temporal`."""

import sys

from mudpuppy.cli import main

if __name__ == "__main__":
    sys.exit(main(["temporal", *sys.argv[1:]]))
