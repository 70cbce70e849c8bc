"""Files of unknown origin are examined before they are opened, and before memory is allocated for their content."""

import io
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest

from kernels.files import check_arrays, check_regular
from kernels.program import UserError


def test_shapes_that_claim_more_than_is_stored_are_refused(tmp_path):
    file = tmp_path / "a.npz"
    arrays = {
        "a": np.zeros((3, 4)),
        "b": np.array("text"),
        "c": np.zeros((0, 5)),
        "d": np.asfortranarray(np.ones((2, 3))),
    }
    np.savez_compressed(file, **arrays)
    check_arrays(file)
    check_arrays(tmp_path / "missing.npz")
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": (1 << 40,)})
    for content in (header.getvalue() + bytes(8), header.getvalue() + bytes(100 << 20)):
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("keypoint.npy", content)
        with pytest.raises(UserError, match=r"a\.npz is damaged or hostile"):
            check_arrays(file)


def test_only_regular_files_are_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("file")
    for path in (tmp_path / "file", tmp_path / "link", tmp_path / "missing"):
        check_regular(path)
    for path, what in ((tmp_path, "a folder"), (tmp_path / "pipe", "a pipe"), (Path("/dev/zero"), "a device")):
        with pytest.raises(UserError, match=f"is {what}, not a file"):
            check_regular(path)
