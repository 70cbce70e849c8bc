"""Benchmarks of the training step: speed, memory, snapshots, and several ranks."""
