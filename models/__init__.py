"""Networks, heads and losses: pure functions of tensors. config.py and classes.py need no torch."""
