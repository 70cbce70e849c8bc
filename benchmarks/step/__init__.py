"""Benchmarks of the training step: how much 2-D layers, loading data and snapshots change its speed."""
