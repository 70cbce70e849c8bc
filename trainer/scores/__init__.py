"""Scores of clips: reads and writes files of scores, fuses scores of several networks, and compares scores."""
