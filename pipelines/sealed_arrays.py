"""Arrays in .npy files with a seal, which shows whether the file is damaged (kernels/whole_files.py)."""

import io
from pathlib import Path

import numpy as np

from kernels.whole_files import read_sealed, sealed


def array_file(array: np.ndarray) -> bytes:
    """The content of a sealed .npy file."""
    content = io.BytesIO()
    np.save(content, array)
    return sealed(content.getvalue())


def read_array(path: Path) -> np.ndarray | None:
    """The array in a sealed .npy file, or None if the file cannot be read, is damaged, or has no seal."""
    content = read_sealed(path)
    return None if content is None else np.load(io.BytesIO(content))
