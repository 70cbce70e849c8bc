"""Settings that must precede every import of torch and Triton, and the fixtures that several packages share."""

import os
from pathlib import Path

import pytest
import torch

if not torch.cuda.is_available():
    # Read when a @triton.jit function is defined, so it has to be set before any fused.py is imported.
    os.environ["TRITON_INTERPRET"] = "1"
torch.set_num_threads(1)  # two pytest workers on two cores; results do not depend on it

# Operators of torch 2.13 and newer take kernels of Triton's interpreter, in which these files launch them on a CPU.
INTERPRETED = torch.cuda.is_available() or torch.__version__ >= (2, 13)
OPERATORS = {f"test_{name}" for name in ("conv_bn", "depthwise", "moments", "norm_act", "residual_conv", "shift_conv")}
OPERATORS |= {"test_networks", "test_report", "test_moved"}

SHARED = Path(__file__).resolve().parents[2] / "shared"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if INTERPRETED:
        return
    reason = f"operators of torch {torch.__version__} do not take Triton's interpreter, those of 2.13 do"
    for item in items:
        if item.path.stem in OPERATORS or "through_kernels" in item.name:
            item.add_marker(pytest.mark.skip(reason))


@pytest.fixture(scope="session")
def fixtures() -> Path:
    """Folder with outputs of the published code (environment variable DUET_FIXTURES); skips where it is absent."""
    folder = Path(os.environ.get("DUET_FIXTURES", SHARED / "fixtures"))
    if not folder.is_dir():
        pytest.skip(f"no fixtures of the published code in {folder}")
    return folder


@pytest.fixture(scope="session")
def real_videos() -> Path:
    """Folder with real NTU videos (environment variable DUET_REAL); skips where it is absent."""
    folder = Path(os.environ.get("DUET_REAL", SHARED / "real"))
    if not folder.is_dir():
        pytest.skip(f"no real videos in {folder}")
    return folder
