"""Checks before anything else is imported: all four packages are ours, and torch is new enough."""

import importlib.metadata
import importlib.util
from pathlib import Path

PACKAGES = ("kernels", "pipelines", "models", "trainer")
OLDEST_TORCH = (2, 11)


def check_origin() -> None:
    """Raise ImportError unless all four packages come from one folder: their names are common, others use them too."""
    root = Path(__file__).resolve().parents[1]
    for name in PACKAGES:
        spec = importlib.util.find_spec(name)
        found = Path(str(spec.origin)).resolve().parents[1] if spec is not None and spec.origin else None
        if found != root:
            raise ImportError(
                f"the package '{name}' would come from {found}, not from {root}: run from the root of the checkout, "
                "in an environment of its own"
            )


def check_torch(version: str | None = None) -> None:
    """Raise ImportError for a torch older than 2.11, with the reason."""
    version = version or importlib.metadata.version("torch")
    major, minor = (int(part) for part in version.split(".")[:2])
    if (major, minor) >= OLDEST_TORCH:
        return
    reason = "its conv3d is broken under bf16 (pytorch issue 166122)" if (major, minor) == (2, 9) else "it is too old"
    raise ImportError(f"torch {version} is refused: {reason}; install torch 2.11 or later, 2.13.0 is what we test")
