"""Networks, heads and losses, which read and return tensors. config.py and classes.py can be imported without torch."""
