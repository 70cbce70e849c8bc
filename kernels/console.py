"""Keeps a program running when its standard output or standard error cannot be written.

The reader may go away (`| head`, a dropped ssh), the disk behind the output may be full, and the encoding may lack the
characters of a name. Text that cannot be written is then lost, and the program goes on.
"""

import contextlib
import errno
import io
import os
import select
import sys
from typing import Any, TextIO

READER_LEFT = (errno.EPIPE, errno.EIO)  # a pipe without a reader, and a terminal that is gone


class Forgiving(io.FileIO):
    """A file that drops data that cannot be written. `error` is the first error that occurred, or None."""

    error: OSError | None = None

    def write(self, data: Any, /) -> int:
        try:
            while (count := super().write(data)) is None:  # None means that a non-blocking pipe is full
                select.select([], [self], [])
            return count
        except OSError as error:
            self.error = self.error or error
            return memoryview(data).nbytes


def open_console() -> None:
    """Replace sys.stdout and sys.stderr by streams that drop what cannot be written and escape what cannot be encoded.

    A stream that other code has put in the place of the original one, as tests and notebooks do, is not replaced. It is
    only configured to escape characters that it cannot encode.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            # Otherwise the next file that is opened, such as a snapshot, would get this file descriptor, and the output
            # would be written into the file.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    sys.stdout = _forgiving(sys.stdout, sys.__stdout__)
    sys.stderr = _forgiving(sys.stderr, sys.__stderr__)


def _forgiving(stream: TextIO | None, own: TextIO | None) -> TextIO:
    if stream is None:
        return open(os.devnull, "w", encoding="utf-8")
    if not isinstance(stream, io.TextIOWrapper):
        return stream
    if stream is not own:
        stream.reconfigure(errors="backslashreplace")
        return stream
    with contextlib.suppress(OSError):
        stream.flush()
    return io.TextIOWrapper(
        io.BufferedWriter(Forgiving(stream.fileno(), "w", closefd=False)),
        stream.encoding,
        "backslashreplace",
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )


def lost_output() -> OSError | None:
    """The error that made standard output lose text. None if no text was lost, or if the reader went away."""
    sys.stdout.flush()
    raw = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
    error = raw.error if isinstance(raw, Forgiving) else None
    return None if error is None or error.errno in READER_LEFT else error
