"""Pictures of a run: curves, confusion, clips."""
