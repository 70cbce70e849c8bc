"""Annotation files: reading them safely, checking them, and keeping them on disk as a table of columns."""
