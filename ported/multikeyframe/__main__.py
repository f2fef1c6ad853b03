"""`python -m ported.multikeyframe`."""

import sys

from ported.multikeyframe.cli import main

if __name__ == "__main__":
    sys.exit(main())
