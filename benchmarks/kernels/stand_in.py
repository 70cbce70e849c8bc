"""A card that is not there, as far as compiling for it asks."""

from types import SimpleNamespace

import triton
from triton.backends.compiler import GPUTarget


def stand_in(arch: int) -> None:
    """From here on Triton compiles for `sm_<arch>` and can launch nothing."""
    driver = SimpleNamespace(
        get_current_target=lambda: GPUTarget("cuda", arch, 32),
        get_current_device=lambda: 0,
        get_current_stream=lambda device: 0,
    )
    triton.runtime.driver.set_active(driver)  # pyright: ignore[reportArgumentType]
