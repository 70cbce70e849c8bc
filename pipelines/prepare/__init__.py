"""`python -m pipelines.prepare`: videos -> a clip pack."""
