"""Benchmarks of the opt-in Triton kernels for blocks: their speed, their registers, and the bytes that they move."""
