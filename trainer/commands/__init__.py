"""One file for each word after `python -m trainer`."""
