"""Settings that must be made before our modules are imported, and fixtures that the tests of several packages use."""

import gc
import os
import sys
import tempfile
from pathlib import Path

import pytest
import torch

from tests.gpus import hide_gpus_unless_selected

hide_gpus_unless_selected(sys.argv[1:])  # before torch looks for GPUs
if not torch.cuda.is_available():
    # Triton reads this variable when a @triton.jit function is defined, so it is set before any kernel is imported.
    os.environ["TRITON_INTERPRET"] = "1"
# without this setting, Inductor starts extra processes, each of which imports torch
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
# Tests must not use settings that `tune` has found for this machine, so they get their own cache folder. Matplotlib's
# font cache would lie in the same folder and takes seconds to make, so it gets a folder that stays.
CACHE = tempfile.TemporaryDirectory(prefix="duet-tests-")
os.environ["XDG_CACHE_HOME"] = CACHE.name
os.environ.setdefault("MPLCONFIGDIR", str(Path(tempfile.gettempdir()) / f"duet-tests-matplotlib-{os.getuid()}"))
torch.set_num_threads(1)  # `make test` runs two workers on two cores; the number of threads does not change results

# On a CPU, the test files in OPERATORS run Triton's interpreter inside operators of torch, which needs torch 2.13.
INTERPRETED = torch.cuda.is_available() or torch.__version__ >= (2, 13)
OPERATORS = {f"test_{name}" for name in ("conv_bn", "depthwise", "moments", "norm_act", "residual_conv", "shift_conv")}
OPERATORS |= {"test_networks", "test_moved"}

SHARED = Path(__file__).resolve().parents[2] / "shared"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if INTERPRETED:
        if not torch.cuda.is_available():
            from tests.interpreter import speed_up  # this import loads Triton, so TRITON_INTERPRET must be set first

            speed_up()
        return
    reason = f"torch {torch.__version__} cannot run kernels in Triton's interpreter, which needs torch 2.13 or newer"
    for item in items:
        if item.path.stem in OPERATORS or "through_kernels" in item.name:
            item.add_marker(pytest.mark.skip(reason))


def pytest_collection_finish() -> None:
    gc.freeze()  # tests do not free the objects of imported modules, so garbage collections can skip them


@pytest.fixture(scope="session")
def fixtures() -> Path:
    """Return the folder with outputs of the published code ($DUET_FIXTURES). Skips the test if it does not exist."""
    folder = Path(os.environ.get("DUET_FIXTURES", SHARED / "fixtures"))
    if not folder.is_dir():
        pytest.skip(f"no fixtures of the published code in {folder}")
    return folder


@pytest.fixture(scope="session")
def real_videos() -> Path:
    """Return the folder with real NTU videos ($DUET_REAL). Skips the test if it does not exist."""
    folder = Path(os.environ.get("DUET_REAL", SHARED / "real"))
    if not folder.is_dir():
        pytest.skip(f"no real videos in {folder}")
    return folder
