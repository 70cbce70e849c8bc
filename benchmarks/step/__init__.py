"""Benchmarks of the training step: what 2-D layers gain, whether the data bound it, and what snapshots cost."""
