"""The snapshots of a run, and the work directory that holds them."""
