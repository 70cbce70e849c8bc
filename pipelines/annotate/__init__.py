"""`python -m pipelines.annotate`: own videos and labels -> an annotation file."""
