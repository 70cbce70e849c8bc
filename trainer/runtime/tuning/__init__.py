"""Finds the fastest execution settings for a card or a CPU, and stores them for later runs (search.py, choice.py)."""

from trainer.runtime.tuning.search import Result, Row, tune

__all__ = ["Result", "Row", "tune"]
