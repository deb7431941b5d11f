"""`python -m unmask` is `unmask`."""

import sys

from unmask.cli import main

if __name__ == "__main__":  # the processes of `--devices 2` import this file too
    sys.exit(main())
