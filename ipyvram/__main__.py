"""``python -m ipyvram``: the command line of `cli`."""

import sys

from ipyvram.cli import main

if __name__ == "__main__":
    sys.exit(main())
