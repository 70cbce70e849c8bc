"""Makes fake NVIDIA drivers: nvidia-smi is a shell script, and libcuda is a library with a single function."""

import functools
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

# 34 is CUDA's error STUB_LIBRARY
LIBRARY = "int cuDriverGetVersion(int *version) { *version = CUDA; return CUDA ? 0 : 34; }"
FAILURE = "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver."
NEWEST_CUDA = {"535.161.08": 12020, "550.54.15": 12040, "580.65.06": 13000}


def machine_with(folder: Path, version: str = "", cuda: int = 0) -> dict[str, str]:
    """Return the environment variables of a process that finds only this fake driver.

    Args:
        folder: where nvidia-smi and libcuda are made.
        version: what nvidia-smi prints; "" if it fails.
        cuda: the version that libcuda returns, such as 12020; 0 if libcuda returns an error.

    Needs a C compiler.
    """
    script = folder / "nvidia-smi"
    script.write_text(f"#!/bin/sh\necho '{version}'\n" if version else f'#!/bin/sh\necho "{FAILURE}"\nexit 9\n')
    script.chmod(0o755)
    (folder / "libcuda.so.1").write_bytes(library(cuda))
    environment = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    return {**environment, "PATH": f"{folder}:{os.environ['PATH']}", "LD_LIBRARY_PATH": str(folder)}


@functools.cache
def library(cuda: int) -> bytes:
    """Compile a libcuda that reports this CUDA version.

    A process that has loaded the file also finds it under the name libcuda.so.1.
    """
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("there is no C compiler (cc)")
    with tempfile.NamedTemporaryFile() as file:
        command = [compiler, "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", f"-DCUDA={cuda}", "-x", "c", "-"]
        subprocess.run([*command, "-o", file.name], input=LIBRARY, text=True, check=True)
        return Path(file.name).read_bytes()
