"""What `python -m trainer predict` does: it finds skeletons, scores windows, and writes JSON, a sheet and a video."""
