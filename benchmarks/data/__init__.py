"""Benchmarks of the data path, ours and MMAction2's, and of JPEG decoding and heatmaps on a GPU."""
