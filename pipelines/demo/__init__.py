"""`python -m pipelines.demo`: generates the data set of the demo."""
