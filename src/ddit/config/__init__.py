"""Configurations of training runs and their data: declared, parsed, overridden."""
