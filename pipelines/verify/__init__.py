"""`python -m pipelines.verify`: is a data set usable?"""
