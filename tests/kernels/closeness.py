"""Compares two errors, both measured against the float64 reference: a kernel's, and that of rounding alone."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

FLOAT32 = 1e-5  # allowed relative error, in the L2 norm
# In bfloat16, the error of a kernel may be this many times the error of a reference that computes in float32 and rounds
# only its result to bfloat16. The first number is for results, the second for gradients.
BFLOAT16, BFLOAT16_GRAD = 1.2, 1.5

Function = Callable[..., Tensor]


def run(function: Function, inputs: Sequence[Tensor], dtype: torch.dtype, rounded: torch.dtype) -> list[Tensor]:
    """Compute the result and the gradients of all inputs in `dtype`, and round them to the type `rounded`."""
    leaves = [tensor.detach().to(dtype).requires_grad_() for tensor in inputs]
    result = function(*leaves)
    generator = torch.Generator().manual_seed(1)
    grad = torch.randn(result.shape, generator=generator).to(inputs[0].dtype).to(result)
    return [tensor.to(rounded) for tensor in (result, *torch.autograd.grad(result, leaves, grad))]


def failures(fused: Function, reference: Function, inputs: Sequence[Tensor]) -> list[str]:
    """Return one line for each result or gradient whose error against float64 is too large."""
    dtype = inputs[0].dtype
    exact = run(reference, inputs, torch.float64, torch.float64)
    found = run(fused, inputs, dtype, dtype)
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        plain = run(reference, inputs, torch.float32, dtype)
    said = []
    for name, best, one, other in zip(["result", *"abc"], exact, found, plain, strict=False):
        assert one.shape == best.shape, name
        error, allowed = distance(one, best), FLOAT32 * best.norm()
        if dtype != torch.float32:
            allowed = (BFLOAT16 if name == "result" else BFLOAT16_GRAD) * distance(other, best)
        if not error <= allowed:
            said.append(f"{name}: {error:.3g}, allowed {allowed:.3g}, norm {best.norm():.3g}")
    return said


def distance(one: Tensor, other: Tensor) -> Tensor:
    return (one.double() - other).norm()
