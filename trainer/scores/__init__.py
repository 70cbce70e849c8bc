"""Files with the scores of clips: reading and writing them, fusing the scores of several networks, and comparing
scores.
"""
