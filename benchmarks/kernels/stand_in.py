"""Replaces Triton's GPU driver, so that kernels can be compiled on a machine without a GPU."""

from types import SimpleNamespace

import triton
from triton.backends.compiler import GPUTarget


def stand_in(arch: int) -> None:
    """Make Triton compile for `sm_<arch>` from now on. Kernels can no longer be launched after this call."""
    driver = SimpleNamespace(
        get_current_target=lambda: GPUTarget("cuda", arch, 32),
        get_current_device=lambda: 0,
        get_current_stream=lambda device: 0,
    )
    triton.runtime.driver.set_active(driver)  # pyright: ignore[reportArgumentType]
