"""Annotation files: read safely, checked, kept as a columnar table on the disk."""
