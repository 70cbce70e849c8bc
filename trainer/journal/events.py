"""Writes event files for TensorBoard. If the disk becomes full, earlier events remain readable.

The writer in the package tensorboard uses a thread, which ends with a traceback when the disk is full. Here the thread
that adds an event also writes it, in one write. An event that does not fit on the disk is removed completely.
"""

import os
import platform
import struct
import time
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportAttributeAccessIssue]
from tensorboard.compat.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]
from tensorboard.summary.writer.record_writer import RecordWriter

from trainer.journal.lines import Lines

VERSION = "brain.Event:2"  # version of the format of event files


class Events:
    """A new event file in `folder`, for the steps from `first_step` on.

    TensorBoard no longer shows the events that older files of the folder contain for these steps.
    All methods raise OSError if the file cannot be written.
    """

    def __init__(self, folder: Path, first_step: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._lines = Lines(folder / f"events.out.tfevents.{time.time_ns()}.{platform.node()}.{os.getpid()}")
        self._records = RecordWriter(self._lines)
        self._write(Event(file_version=VERSION))
        self._write(Event(step=first_step, session_log=SessionLog(status=SessionLog.START)))

    def add(self, name: str, value: float, step: int) -> None:
        """Add a point to the curve `name`."""
        self._write(Event(step=step, summary=Summary(value=[Summary.Value(tag=name, simple_value=value)])))

    def add_picture(self, name: str, png: bytes, step: int) -> None:
        """Add a picture, the content of a PNG file, under `name`."""
        # width and height, which follow the first 16 bytes of every PNG file
        width, height = struct.unpack(">II", png[16:24])
        image = Summary.Image(height=height, width=width, colorspace=4, encoded_image_string=png)
        self._write(Event(step=step, summary=Summary(value=[Summary.Value(tag=name, image=image)])))

    def close(self) -> None:
        self._lines.close()

    def _write(self, event: Event) -> None:
        event.wall_time = time.time()
        self._records.write(event.SerializeToString())
