"""Records how a program changes a folder, and makes every state that a disk may show after a power loss.

The idea comes from ALICE (Pillai et al., OSDI 2014) and LazyFS. `recorded` looks at the folder before and after each
system call that the writer makes, so it also sees files that a library writes in C++. The model of a file system gives
weak guarantees. Names reach the disk when their folder is synced; before that, any of them may be missing. Content
reaches the disk when its file is synced; before that, the file may have its old content, its new content, a part of it,
or zeros in some places.
"""

import itertools
import os
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from unittest.mock import patch

CALLS = ("replace", "rename", "unlink", "remove", "mkdir", "rmdir", "symlink", "truncate", "open", "close")
Entry = tuple[int, str]  # the inode of a folder, and a name in that folder


@dataclass
class Disk:
    """The entries and contents that are certainly on the disk, and the later changes that may be there.

    names: the entries that are certainly on the disk. changes: later changes of entries. The disk has each change
    completely or not at all, and inode 0 means that the entry is removed. contents: for each inode, the content that is
    on the disk, followed by later contents. The content of a folder is None, and the content of a link is its target as
    text.
    """

    names: dict[Entry, int] = field(default_factory=dict)
    changes: list[dict[Entry, int]] = field(default_factory=list)
    contents: dict[int, list[bytes | str | None]] = field(default_factory=dict)

    def copy(self) -> "Disk":
        contents = {inode: list(versions) for inode, versions in self.contents.items()}
        return Disk(dict(self.names), [dict(change) for change in self.changes], contents)


class Recorder:
    """Watches a folder while a program writes into it.

    After each operation that changes something, the list `disks` gets what the disk may then contain of the folder.
    """

    def __init__(self, root: Path) -> None:
        self.root, self.top = root, root.stat().st_ino
        self.current, contents = self._look()
        self.disk = Disk(dict(self.current), [], {inode: [content] for inode, content in contents.items()})
        self.disks = [self.disk.copy()]

    def _look(self) -> tuple[dict[Entry, int], dict[int, bytes | str | None]]:
        names, contents = {}, {}
        for folder, folders, files in os.walk(self.root):
            inode = os.stat(folder).st_ino
            contents[inode] = None
            for name in (*folders, *files):
                path = Path(folder, name)
                names[inode, name] = number = path.lstat().st_ino
                contents[number] = (
                    os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else None
                )
        return names, contents

    def observe(self, synced: int | None = None) -> None:
        """Record what has changed since the last call. `synced` is the inode that has just been synced."""
        names, contents = self._look()
        change = {
            entry: names.get(entry, 0)
            for entry in {*names, *self.current}
            if names.get(entry) != self.current.get(entry)
        }
        changed = bool(change)
        if change:
            self.disk.changes.append(change)
        for inode, content in contents.items():
            versions = self.disk.contents.setdefault(inode, [b"" if isinstance(content, bytes) else content])
            if versions[-1] != content:
                versions.append(content)
                changed = True
        if synced is not None:
            changed = True
            if synced in contents and contents[synced] is not None:
                self.disk.contents[synced] = [contents[synced]]
            done = [change for change in self.disk.changes if any(folder == synced for folder, _ in change)]
            self.disk.changes = [change for change in self.disk.changes if change not in done]
            for change in done:
                self.disk.names |= change
        self.current = names
        if changed:
            self.disks.append(self.disk.copy())


@contextmanager
def recorded(root: Path) -> Iterator[Recorder]:
    """A context that records every change that this process makes in the folder `root`."""
    recorder = Recorder(root)

    def wrapped(call: Callable) -> Callable:
        def wrapper(*args, **kwargs):
            recorder.observe()  # records what was written before this call
            answer = call(*args, **kwargs)
            recorder.observe()
            return answer

        return wrapper

    def fsync(handle: int) -> None:
        recorder.observe()
        sync(handle)
        recorder.observe(os.fstat(handle).st_ino)

    sync = os.fsync
    with patch.multiple(os, fsync=fsync, **{name: wrapped(getattr(os, name)) for name in CALLS}):
        yield recorder
    recorder.observe()


def torn(old: bytes, new: bytes) -> list[bytes]:
    """Return the contents that a file on disk may have while it changes from `old` to `new`."""
    half = len(new) // 2
    return [old, new, new[:half], new[:half] + bytes(len(new) - half), bytes(half) + new[half:]]


def states(
    disk: Disk, luck: random.Random, most: int
) -> Iterator[tuple[dict[Entry, int], dict[int, bytes | str | None]]]:
    """Yield the legal states of a disk. If there are more than about `most`, yield only a sample of about that many."""
    count = len(disk.changes)
    if 2**count <= most:
        subsets = [list(kept) for size in range(count + 1) for kept in itertools.combinations(range(count), size)]
    else:
        subsets = [list(range(end)) for end in range(count + 1)]
        subsets += [[place for place in range(count) if place != left] for left in range(count)]
        subsets += [sorted(luck.sample(range(count), luck.randrange(count + 1))) for _ in range(most)]
    certain = {inode: versions[-1] for inode, versions in disk.contents.items() if len(versions) == 1}
    loose = {inode: versions for inode, versions in disk.contents.items() if len(versions) > 1}
    for kept in subsets[: 4 * most]:
        names = dict(disk.names)
        for place in kept:
            names |= disk.changes[place]
        whole = certain | {inode: versions[-1] for inode, versions in loose.items()}
        yield names, whole
        yield names, certain | {inode: versions[0] for inode, versions in loose.items()}
        for inode, versions in loose.items():
            first, last = versions[0], versions[-1]
            if isinstance(first, bytes) and isinstance(last, bytes):
                for content in torn(first, last):
                    yield names, whole | {inode: content}


def make(root: Path, top: int, names: dict[Entry, int], contents: dict[int, bytes | str | None]) -> None:
    """Recreate the folder `root` with the names and contents of a state."""
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    for (folder, name), inode in names.items():
        if folder == top and inode:
            _make(root / name, inode, names, contents)


def _make(path: Path, inode: int, names: dict[Entry, int], contents: dict[int, bytes | str | None]) -> None:
    content = contents[inode]
    if content is None:
        make(path, inode, names, contents)
    elif isinstance(content, str):
        path.symlink_to(content)
    else:
        path.write_bytes(content)


@dataclass
class Counts:
    operations: int = 0
    states: int = 0
    newest: int = 0
    before: int = 0


def try_all(recorder: Recorder, place: Path, read: Callable[[Path], bool], most: int, share: float = 1) -> Counts:
    """Open every state with `read`, which returns whether the content is the newest, and fails if it is wrong.

    After the last recorded operation, only the newest content is right. share: open only this share of the states.
    """
    luck, seen, counts = random.Random(0), set(), Counts(operations=len(recorder.disks))
    for number, disk in enumerate(reversed(recorder.disks)):
        for names, contents in states(disk, luck, most):
            key = hash(frozenset((e, i, contents.get(i)) for e, i in names.items() if i))
            if key in seen:
                continue
            seen.add(key)
            if luck.random() > share:
                continue
            make(place, recorder.top, names, contents)
            newest = read(place)
            assert newest or number, "what had been saved is lost"
            counts.states += 1
            counts.newest += newest
            counts.before += not newest
    return counts
