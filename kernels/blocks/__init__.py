"""Opt-in kernels for the blocks of the networks. README.md describes their status and how to turn them on.

Each NAME.py is a kernel in Triton, and NAME_reference.py defines its result in plain torch. dispatch.py has the
functions that models/fused.py calls: they run the kernel on a GPU, and the reference on a CPU.
"""
