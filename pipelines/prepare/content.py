"""Decides whether a video is the one from which a clip was made.

A video counts as unchanged if the stamp of its file is unchanged. Otherwise, its whole content decides.
"""

import hashlib
import os
from typing import NamedTuple

from pipelines.videos.container import VideoError

ENDS = "ends:"  # prefix of an earlier version's digests, which cover only the size and the first and last MiB


class Stamp(NamedTuple):
    """Properties of a file that change when it is written or replaced: size in bytes, modification time in ns, inode.

    The inode is 0 if it is not known, and -1 in a stamp that only fills up a list of stamps (NO_STAMPS).
    """

    bytes: int
    time: int
    inode: int

    def before(self, stamps: list[list[int]]) -> list[list[int]]:
        """Four stamps: this one, the first other ones in `stamps`, and NO_STAMPS if there are fewer than four.

        Several stamps are kept because copies of a data set may be used in turn.
        """
        return [list(self), *(stamp for stamp in stamps if stamp[2] and stamp != list(self)), *NO_STAMPS][:4]


NO_STAMPS = [[-1, 0, -1]] * 4


def stamp_of(video: str) -> Stamp:
    """The size, modification time and inode of a video's file. Raises OSError."""
    stat = os.stat(video)
    return Stamp(stat.st_size, stat.st_mtime_ns, stat.st_ino)


def digest_of_video(video: str) -> tuple[str, Stamp]:
    """The digest of a video's whole content (20 hex digits), and its stamp. Raises VideoError if it cannot be read."""
    try:
        with open(video, "rb") as file:
            stat = os.fstat(file.fileno())
            digest = hashlib.file_digest(file, "sha256").hexdigest()[:20]
    except OSError as error:
        raise VideoError(f"the video cannot be read ({error.strerror})") from None
    return digest, Stamp(stat.st_size, stat.st_mtime_ns, stat.st_ino)
