"""Pictures of runs: curves, confusion matrices and clips."""
