"""What `python -m trainer predict` does: it finds skeletons, scores windows, and writes JSON, a picture and a video."""
