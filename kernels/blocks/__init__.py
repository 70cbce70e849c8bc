"""Opt-in kernels for the blocks of the networks; README.md says what is known of them and how to turn them on.

Each NAME.py holds a kernel in Triton, and NAME_reference.py its contract in plain torch. dispatch.py has the functions
that models/fused.py calls: a kernel on a GPU, its reference on a CPU.
"""
