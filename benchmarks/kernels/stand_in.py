"""A stand-in for a GPU, which is enough for compiling."""

from types import SimpleNamespace

import triton
from triton.backends.compiler import GPUTarget


def stand_in(arch: int) -> None:
    """From now on Triton compiles for `sm_<arch>`, and cannot launch anything."""
    driver = SimpleNamespace(
        get_current_target=lambda: GPUTarget("cuda", arch, 32),
        get_current_device=lambda: 0,
        get_current_stream=lambda device: 0,
    )
    triton.runtime.driver.set_active(driver)  # pyright: ignore[reportArgumentType]
