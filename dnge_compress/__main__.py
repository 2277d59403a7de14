"""`python -m dnge_compress` is `dnge`."""

import sys

from dnge_compress.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
