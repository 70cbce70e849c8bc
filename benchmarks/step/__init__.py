"""The training step: its speed, memory, snapshots and ranks."""
