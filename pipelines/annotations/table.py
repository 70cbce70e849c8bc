"""The annotation table: the content of a skeleton pickle as columns that are stored on the disk.

`open_table` converts a pickle once and stores the table in a cache, under a digest of the pickle's content. Every
process checks once whether the stored table is damaged, by the seals of its files (kernels/whole_files.py). The joints,
which take up nearly the whole table, are read from the disk when they are needed, so that all ranks on a machine share
one copy in the memory of the operating system. docs/sources.md, "Annotation files", describes the pickles.
"""

import contextlib
import fcntl
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from kernels.files import check_regular
from kernels.whole_files import read_sealed
from pipelines.annotations.build import build_in_child
from pipelines.annotations.file_digest import digest_of
from pipelines.annotations.measures import MEASURES
from pipelines.annotations.schema import AnnotationError, not_opened
from pipelines.annotations.splits import find_split, pair_name, pairs_of
from pipelines.annotations.stored_joints import StoredJoints
from pipelines.sealed_arrays import read_array
from pipelines.videos.turn import AnnotatedImage, Rotation

FORMAT = 5  # raise this number when the columns change, so that tables in the cache are built again


@dataclass(frozen=True, slots=True)
class ClipTable:
    """All clips of an annotation file, one row per clip.

    digest: identifies the content of the annotation file.
    names: [n] str. label, total_frames, num_persons: [n] int32. height, width: [n] int32, of the image in pixels.
    joints: [sum of M*T over all clips, V, 3] float16 or float32, (x, y, score) in pixels of the image. Slices of its
        first axis can be read.
    first_row: [n] int64, where the joints of each clip start in `joints`.
    splits: for the name of each split, the rows of its clips; empty if the file is a plain list.
    class_names: the name of each class, or empty if the file does not name its classes.
    coarse_map: the coarse class of each class, or empty if the file has no coarse classes.
    skeleton: the name of the joint layout, or '' if the file names none.
    rotation: see AnnotatedImage; None if the file contains none.
    measures: [n] of dtype MEASURES, the measures of each clip's joints; empty if the table was not read from a file.
    absent: for each split that lists clips without an annotation, the number of these clips and the name of the first.
    """

    digest: str
    names: np.ndarray
    label: np.ndarray
    total_frames: np.ndarray
    height: np.ndarray
    width: np.ndarray
    num_persons: np.ndarray
    first_row: np.ndarray
    joints: np.ndarray | StoredJoints
    splits: dict[str, np.ndarray]
    class_names: tuple[str, ...] = ()
    coarse_map: tuple[int, ...] = ()
    skeleton: str = ""
    rotation: Rotation | None = None
    measures: np.ndarray = field(default_factory=lambda: np.zeros(0, MEASURES))
    absent: dict[str, tuple[int, str]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.label)

    @property
    def num_joints(self) -> int:
        return self.joints.shape[1]

    def clip_joints(self, row: int) -> np.ndarray:
        """The joints of the clip in row `row`: [M, T, V, 3] (x, y, score). M may be 0.

        Raises UserError if the file of the joints has been truncated since it was opened.
        """
        persons, frames, first = self.num_persons[row], self.total_frames[row], self.first_row[row]
        rows = self.joints[first : first + persons * frames]
        return rows.reshape(persons, frames, self.num_joints, 3)

    def image(self, row: int, rotation: Rotation) -> AnnotatedImage:
        """The annotated image of a clip. `rotation` is used if the annotation file contains none."""
        return AnnotatedImage(int(self.width[row]), int(self.height[row]), self.rotation or rotation)

    def rows_in_split(self, split: str | None) -> np.ndarray:
        """The rows of a split, or all rows if `split` is None.

        split: the name of a split, or PAIR_train or PAIR_val of a pair of splits (`find_split`). None is for annotation
            files that have no splits, such as the files of MA-52.
        Raises AnnotationError if there is no such split, or if none of its clips has an annotation.
        """
        if split is None:
            return np.arange(len(self))
        name = find_split(self.splits, split)
        if name is None:
            pairs = [pair_name(train) or train for train, _ in pairs_of(self.splits)]
            ways = [f"data.split={pair}" for pair in pairs]
            if len(self.splits) > 1 and not pairs:
                ways.append("data.train_split and data.val_split to two of these names")
            raise AnnotationError(
                f"the annotations have no split '{split}', only {sorted(self.splits) or 'a plain list'}; set "
                + (f"{' or '.join(ways)}, or " if ways else "")
                + "data.split=none with data.val_annotations, if the validation clips have a file of their own"
            )
        if not len(self.splits[name]):
            count, first = self.absent.get(name, (0, ""))
            listed = f" (it lists {count}, such as {first}, but the file annotates clips such as {self.names[0]})"
            problem = f"split '{name}' has no clip with an annotation{listed if count else ''}"
            raise AnnotationError(f"{problem}; choose another split with data.split")
        return self.splits[name]


def open_table(path: Path, cache: Path) -> ClipTable:
    """Open the table that Duet makes from an annotation pickle.

    If the folder `cache` contains no such table, or a damaged one, the table is built. Raises AnnotationError.
    """
    check_regular(path, AnnotationError)
    try:
        digest = digest_of(path, cache)
    except OSError as error:
        raise not_opened(path, error) from None
    folder = cache / f"{digest}-v{FORMAT}"
    table = _load(folder, digest)
    if table is None:
        with _lock(cache):
            if _load(folder, digest) is None:  # another process may have built the table while this one waited
                build_in_child(path, folder)
        table = _load(folder, digest)
        assert table is not None
    return table


_COLUMNS = ("names", "label", "total_frames", "height", "width", "num_persons", "first_row", "measures")
_FACTS = ("splits.json", "absent.json", "class_names.json", "rotation.json", "coarse_map.json", "skeleton.json")


def _load(folder: Path, digest: str) -> ClipTable | None:
    """The table in a folder of the cache, or None if it is missing or damaged."""
    columns: dict[str, Any] = {name: read_array(folder / f"{name}.npy") for name in _COLUMNS}
    facts = [read_sealed(folder / name) for name in _FACTS]
    try:
        joints = StoredJoints(folder / "joints.npy")
    except (OSError, ValueError):
        return None
    if any(content is None for content in (*columns.values(), *facts)):
        return None
    splits, absent, class_names, rotation, coarse_map, skeleton = (
        json.loads(fact) for fact in facts if fact is not None
    )
    rows = {name: np.asarray(rows, np.int64) for name, rows in splits.items()}
    return ClipTable(
        digest=digest,
        joints=joints,
        splits=rows,
        class_names=tuple(class_names),
        coarse_map=tuple(coarse_map),
        skeleton=skeleton,
        rotation=rotation,
        absent={name: tuple(entry) for name, entry in absent.items()},
        **columns,
    )


@contextlib.contextmanager
def _lock(cache: Path) -> Iterator[None]:
    """Let one process at a time build a table. Raises AnnotationError if the disk is full or read-only."""
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with open(cache / "lock", "w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield
    except OSError as error:
        raise AnnotationError(
            f"{cache} cannot be written ({error.strerror or error}); set data.cache (--cache) to another folder"
        ) from None
