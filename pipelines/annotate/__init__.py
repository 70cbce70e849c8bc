"""`python -m pipelines.annotate`: makes an annotation file from your own videos and labels."""
