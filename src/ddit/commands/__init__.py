"""The verbs of the command `ddit`, listed in `ddit.cli`, and what they share."""
