"""`python -m ddit` is `ddit`."""

from ddit.cli import main

main()
