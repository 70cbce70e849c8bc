"""Clip packs: the format of their files, and reading frames from them."""
