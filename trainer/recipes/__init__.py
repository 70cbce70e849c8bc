"""Recipes: commands that do several runs, each starting from the results of earlier runs, and that can be resumed."""
