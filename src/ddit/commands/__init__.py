"""The verbs of the command `ddit`, and what they share."""
