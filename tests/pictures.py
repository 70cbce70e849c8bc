"""Lets runs end without drawing clips.png, curves.png and confusion.png, and without writing the report page.

Drawing them takes more than half of the CPU time of a short run.
"""

import pytest

from trainer import session
from trainer.report import end_of_run


def leave_out_pictures(patches: pytest.MonkeyPatch) -> None:
    """Let the runs of this process draw nothing, until `patches` are undone."""
    patches.setattr(session, "draw_clips", lambda *_: None)
    patches.setattr(end_of_run, "write_report", lambda *_: [])
    patches.setattr(end_of_run, "try_to_write", lambda *_: [])
