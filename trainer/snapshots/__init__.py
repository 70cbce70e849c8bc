"""The snapshots of a run, and the work directory in which they are stored."""
