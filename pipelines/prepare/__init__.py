"""`python -m pipelines.prepare`: makes a clip pack from videos."""
