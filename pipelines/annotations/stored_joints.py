"""The joints of a table in the cache. Parts of them are read from the disk when they are needed."""

import functools
import os
from pathlib import Path

import numpy as np

from kernels.program import UserError
from kernels.whole_files import matches_seal


class StoredJoints:
    """A .npy file with an array [rows, V, 3]. Several threads can read slices of its rows.

    The file ends with a seal, which contains its checksum (kernels/whole_files.py). Each process checks the seal once,
    which takes about half a second for each GB that the operating system has cached. The file is not memory-mapped,
    because a process that has mapped a file is killed if another process truncates the file.

    Raises OSError if the file cannot be opened, and ValueError if it is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = open(path, "rb")  # noqa: SIM115
        status = os.fstat(self._file.fileno())
        if not _is_whole(path, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns):
            raise ValueError(f"{path} is damaged")
        np.lib.format.read_magic(self._file)
        self.shape, _, self.dtype = np.lib.format.read_array_header_1_0(self._file)
        self._start = self._file.tell()

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> np.ndarray:
        """Read rows: [n, V, 3]. Raises UserError if the file has been truncated since it was opened."""
        first, end, step = rows.indices(len(self))
        row_bytes = self.dtype.itemsize * self.shape[1] * self.shape[2]
        size = max(0, end - first) * row_bytes
        content = os.pread(self._file.fileno(), size, self._start + first * row_bytes)
        if len(content) < size:
            raise UserError(
                f"{self.path} was truncated by another program while it was in use; start again, and the file is "
                "made again from the annotation file"
            )
        return np.frombuffer(content, self.dtype).reshape(-1, *self.shape[1:])[::step]


@functools.lru_cache
def _is_whole(path: Path, *_: int) -> bool:
    """Whether the file matches its seal.

    The arguments after `path` are only keys of the cache: a file is checked again after it was changed or replaced.
    """
    with open(path, "rb") as file:
        return matches_seal(file.fileno())
