"""Converts weights between their published 5-D shapes and our shapes, which leave out axes of length one."""

from torch import Tensor

from models.weights.files import WeightsError
from models.weights.renaming import State


def folded(state: State) -> State:
    """Convert tensors of published shapes to our shapes. The tensors must already have our names."""
    return {name: fold(name, tensor) for name, tensor in state.items()}


def unfolded(state: State) -> State:
    """Convert our tensors to the published shapes: the inverse of `folded`."""
    return {name: unfold(name, tensor) for name, tensor in state.items()}


def fold(name: str, tensor: Tensor) -> Tensor:
    """Convert one published tensor to our shape.

    [O, I, 1, k, k] becomes [O, I, k, k], and [O, I, k, 1, 1] becomes [O, I, k, 1]. In squeeze-excite, [O, I, 1, 1, 1]
    becomes [O, I]. Prototypes are transposed: in published files they are columns, in ours they are rows. Raises
    WeightsError for a convolution that spans both time and space.
    """
    if name.endswith(".prototypes"):
        return tensor.T
    if tensor.ndim != 5:
        return tensor
    if ".se_module." in name:
        return tensor.flatten(1) if tensor.shape[2:].numel() == 1 else refuse(name, tensor)
    if tensor.shape[2] == 1:
        return tensor[:, :, 0]
    return tensor[..., 0] if tensor.shape[3:] == (1, 1) else refuse(name, tensor)


def unfold(name: str, tensor: Tensor) -> Tensor:
    if name.endswith(".prototypes"):
        return tensor.T
    if ".se_module." in name and tensor.ndim == 2:
        return tensor[..., None, None, None]
    if tensor.ndim != 4:
        return tensor
    return tensor[..., None] if tensor.shape[2] > tensor.shape[3] else tensor[:, :, None]


def refuse(name: str, tensor: Tensor) -> Tensor:
    raise WeightsError(
        f"{name} of shape {tuple(tensor.shape)} spans both time and space: no network here has such a layer"
    )
