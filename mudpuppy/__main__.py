"""`python -m mudpuppy` is `mud-puppy`."""

from mudpuppy.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
