"""The command line: ``gometal``."""
