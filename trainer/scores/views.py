"""The views of a clip whose scores `eval` averages: samples of its frames, crops of its box, and mirror images."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import Literal

from pipelines.loader import Loader
from pipelines.plan import THREE_CROPS


@dataclass(frozen=True, kw_only=True, slots=True)
class Views:
    """How many views of each clip are scored. Raises ValueError for impossible values."""

    clips: int = 1
    """Number of samples of the frames."""
    crops: Literal[1, 3] = 1
    """1: the whole box. 3: squares at its left, in its middle and at its right."""
    flip: bool = False
    """Whether each sample and crop is also scored as a mirror image."""

    def __post_init__(self) -> None:
        is_count = type(self.clips) is int and self.clips >= 1
        if not is_count or self.crops not in (1, 3) or type(self.flip) is not bool:
            raise ValueError(f"no such views of a clip: {self.clips!r}, {self.crops!r}, {self.flip!r}")

    def __str__(self) -> str:
        """The views in words, such as `10 samples, 3 crops, mirrored too`."""
        samples = f"{self.clips} sample{'s' * (self.clips > 1)}"
        return samples + ", 3 crops" * (self.crops == 3) + ", mirrored too" * self.flip

    def __len__(self) -> int:
        return self.clips * self.crops * (1 + self.flip)

    def loaders(self, loader: Loader) -> Iterator[Loader]:
        """A loader for each of the views."""
        crops = range(len(THREE_CROPS)) if self.crops == 3 else (None,)
        for sample, crop, mirrored in product(range(self.clips), crops, (False, True) if self.flip else (False,)):
            yield replace(loader, sample=sample, num_samples=self.clips, crop=crop, mirrored=mirrored)
