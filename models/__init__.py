"""Networks, heads and losses, which depend on tensors alone. config.py and classes.py can be used without torch."""
