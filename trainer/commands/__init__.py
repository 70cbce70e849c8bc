"""The commands of `python -m trainer`. Each command has its own file."""
