"""`python -m pipelines.demo`: the demo's data set, generated."""
