"""Builds the table of an annotation pickle, in a child process with limits on its memory and time.

Pickles may come from strangers. The reader runs no code from them (safe_pickle.py), but a small file can still describe
content that takes any amount of memory, or keys that take forever to put into a dict. The limits grow with the size of
the file.
"""

import collections
import json
import math
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from kernels.program import UserError, die_with_parent
from kernels.whole_files import seal, sealed, whole_folder
from pipelines.annotations.measures import measure
from pipelines.annotations.schema import (
    AnnotationError,
    class_names_of,
    clips_and_splits,
    coarse_map_of,
    columns_of_clips,
    layout_of,
    read_pickle,
    rotation_of,
    split_rows,
    text_of,
)
from pipelines.annotations.stored_joints import StoredJoints
from pipelines.sealed_arrays import array_file

ROOT = Path(__file__).resolve().parents[2]
SECONDS, SECONDS_PER_GB = 5, 60  # limits of processor time; NTU-60's pickle of 1.1 GB takes 20 to 50 s
MEMORY, MEMORY_PER_BYTE = 1 << 30, 8  # limit of address space in bytes: MEMORY + MEMORY_PER_BYTE * size of the pickle
# The joints of a table may take at most MAX_GROWTH times the bytes of the pickle, plus SMALL. More is possible only if
# the pickle stores an array once and several clips refer to it.
MAX_GROWTH, SMALL = 8, 16 << 20
# More threads of NumPy would only reserve memory, which counts towards the limit.
THREADS = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
AGAIN = "get the published skeleton pickle again"


def build_in_child(path: Path, folder: Path) -> None:
    """Call `build` in a process of its own. Raises AnnotationError, or OSError if the table cannot be written."""
    done = subprocess.run(
        [sys.executable, "-m", "pipelines.annotations.build", path.absolute(), folder.absolute(), str(os.getpid())],
        cwd=ROOT,
        env=os.environ | THREADS,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        process_group=0,  # Ctrl-C then reaches only this process, and subprocess.run kills the child
        check=False,
    )
    if done.returncode == -signal.SIGXCPU:
        raise AnnotationError(
            f"{path} takes more than {seconds_for(path):.0f} s to read, too long for a file of its size; {AGAIN}"
        )
    if done.returncode < 0:
        name = signal.Signals(-done.returncode).name
        raise AnnotationError(
            f"the process that read {path} was ended by {name}; run the same command again, or {AGAIN}"
        )
    if done.returncode:
        raise RuntimeError(f"the process that reads annotations failed: {done.stderr.decode(errors='replace')}")
    answer = json.loads(done.stdout)
    if "errno" in answer:
        raise OSError(answer["errno"], answer["reason"])
    if "refused" in answer:
        raise AnnotationError(answer["refused"])


def seconds_for(path: Path) -> float:
    """Processor time that reading a pickle may take."""
    return SECONDS + SECONDS_PER_GB * path.stat().st_size / 1e9


def main() -> None:
    """The program of the child process. It prints an error as JSON, or an empty JSON object if there was none."""
    path, folder, parent = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    die_with_parent(parent)
    memory = MEMORY + MEMORY_PER_BYTE * path.stat().st_size
    seconds = math.ceil(time.process_time() + seconds_for(path))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
    print(json.dumps(_answer(path, folder, memory)), flush=True)
    os._exit(0)  # does not free the content, which could take long if it is deeply nested


def _answer(path: Path, folder: Path, memory: int) -> dict[str, str | int]:
    try:
        build(path, folder)
    except UserError as error:
        return {"refused": str(error)}
    except OSError as error:
        return {"errno": error.errno or 0, "reason": error.strerror or str(error)}
    except MemoryError:
        return {
            "refused": f"{path} takes more than {memory / 1e9:.1f} GB of memory to read, too much for a file of its "
            f"size; {AGAIN}"
        }
    except Exception as error:  # hostile content can raise any exception
        return {"refused": str(AnnotationError(f"{path} cannot be read: {type(error).__name__}: {error}; {AGAIN}"))}
    return {}


def build(path: Path, folder: Path) -> None:
    """Build in `folder` the table of the annotation pickle `path`.

    A process that is killed leaves no partial table (`whole_folder`).
    Raises AnnotationError, or OSError if the table cannot be written.
    """
    content = read_pickle(path)
    clips, splits = clips_and_splits(path, content)
    columns = columns_of_clips(path, clips, MAX_GROWTH * path.stat().st_size + SMALL)
    rotation = rotation_of(path, content)
    num_classes = int(columns["label"].max()) + 1
    class_names = class_names_of(path, content, num_classes)
    coarse_map = coarse_map_of(path, content, len(class_names) or num_classes)
    row_of = {name: row for row, name in enumerate(columns["names"].tolist())}
    if len(row_of) != len(clips):
        duplicates = [name for name, count in collections.Counter(columns["names"].tolist()).items() if count > 1]
        raise AnnotationError(
            f"{path} lists clips twice ({len(duplicates)} in all, the first is {duplicates[0]}); remove the duplicates"
        )
    rows, absent = {}, {}
    for key, members in splits.items():
        name = text_of(f"the name of a split of {path}", key)
        if name in rows:
            raise AnnotationError(f"{path} has two splits with the name {name}; rename one of them")
        rows[name], missing = split_rows(path, name, members, row_of)
        if missing:
            absent[name] = len(missing), missing[0]
    facts = {"splits": rows, "absent": absent, "class_names": class_names, "rotation": rotation}
    facts |= {"coarse_map": coarse_map, "skeleton": layout_of(path, content)}
    with whole_folder(folder) as part:
        _save_joints(part / "joints.npy", columns.pop("joints"))
        columns["measures"] = _measured(StoredJoints(part / "joints.npy"), columns)
        for name, column in columns.items():
            (part / f"{name}.npy").write_bytes(array_file(column))
        for name, fact in facts.items():
            (part / f"{name}.json").write_bytes(sealed(json.dumps(fact).encode()))


def _measured(joints: StoredJoints, columns: dict[str, np.ndarray]) -> np.ndarray:
    """Compute the column `measures`, and move the columns `not_a_number` and `third` into it."""
    per_clip = columns["num_persons"].astype(np.int64) * columns["total_frames"]
    measures = measure(
        joints, per_clip, columns["height"], columns["width"], columns["first_row"], columns["total_frames"]
    )
    for name in ("not_a_number", "third"):
        measures[name] = columns.pop(name)
    return measures


def _save_joints(path: Path, joints: list[np.ndarray]) -> None:
    """Write the joints of all clips, each [M, T, V, 3], as one sealed array [sum of M*T, V, 3].

    The clips are written one after another, because joining them first would need twice the memory.
    """
    dtype = np.dtype(np.float16 if all(clip.dtype == np.float16 for clip in joints) else np.float32)
    shape = (sum(clip.shape[0] * clip.shape[1] for clip in joints), *joints[0].shape[2:])
    with open(path, "wb") as file:
        header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        for clip in joints:
            file.write(np.ascontiguousarray(clip, dtype).tobytes())
    seal(path)


if __name__ == "__main__":
    main()
