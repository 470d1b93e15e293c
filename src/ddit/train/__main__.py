"""`python -m ddit.train ...` is `ddit train ...`, in the form that torchrun starts."""

import sys

from ddit.cli import main

if __name__ == "__main__":
    sys.argv.insert(1, "train")
    main()
