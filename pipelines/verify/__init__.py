"""`python -m pipelines.verify`: checks whether a data set can be used for training."""
