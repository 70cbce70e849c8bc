"""A run with aligned channels can be stopped and resumed. Its snapshots have the published shapes."""

import pytest

from trainer.cli import dispatch
from trainer.snapshots.writer import SnapshotError, newest_valid

ALIGNED = ("--set", "align_channels=true", "--set", "optim.ema=0.9", "--set", "optim.num_epochs=1")


def test_an_aligned_run_resumes_and_its_snapshots_are_the_published_network(tiny, tmp_path):
    where = ("--work-dir", str(tmp_path / "run"))
    assert dispatch([*tiny, *ALIGNED, *where, "--max-steps", "3"]) == 0
    with pytest.raises(SnapshotError, match="align_channels=true, not false"):
        dispatch([*tiny, *where, "--set", "align_channels=false", "--resume"])
    assert dispatch([*tiny, *ALIGNED, *where, "--resume"]) == 0
    found = newest_valid(tmp_path / "run", print)
    assert found is not None
    state = found[1]
    shape = state["model"]["rgb_backbone.layer1.0.conv2.conv.weight"].shape
    assert shape[0] % 8
    widths = {tensor["momentum_buffer"].shape[0] for tensor in state["optimizer"]["state"].values()}
    assert shape[0] not in widths
    for averaged in ((), ("--averaged",)):
        assert dispatch(["eval", *tiny, "--checkpoint", str(found[0]), *averaged, "--device", "cpu"]) == 0
