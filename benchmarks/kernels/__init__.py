"""Benchmarks of the opt-in Triton blocks: their speed, their registers, and the bytes that they move."""
