"""Scores of clips in files: reading and writing them, fusing those of several networks, and comparing them."""
