"""Runs the command line: `python -m rlbatch`."""

import sys

from rlbatch.cli import main

if __name__ == "__main__":
    sys.exit(main())
