"""Recipes: several runs, each of which starts from the results of earlier ones, as one command that can be resumed."""
