"""Clip packs: what a pack holds, and frames out of it."""
