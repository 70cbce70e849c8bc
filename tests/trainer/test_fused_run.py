"""A run with fused parts can be resumed without them, and a run without fused parts with them. The log says so."""

from trainer.cli import dispatch
from trainer.snapshots.writer import newest_valid

FUSED = ("--set", "fused=x3d_block,norm_act")


def test_fused_is_saved_told_on_resume_and_changes_no_name(tiny, tmp_path):
    where = ("--work-dir", str(tmp_path / "run"))
    assert dispatch([*tiny, *FUSED, *where, "--max-steps", "3"]) == 0
    log = tmp_path / "run" / "train.log"
    assert dispatch([*tiny, *FUSED, *where, "--max-steps", "5", "--resume"]) == 0
    assert "fused was" not in log.read_text()
    assert dispatch([*tiny, *where, "--set", "fused=()", "--resume"]) == 0
    assert "fused was (x3d_block,norm_act) in" in log.read_text()
    found = newest_valid(tmp_path / "run", print)
    assert found is not None
    assert "rgb_backbone.layer1.0.conv2.bn.running_mean" in found[1]["model"]
    assert dispatch(["eval", *tiny, *FUSED, "--checkpoint", str(found[0]), "--device", "cpu"]) == 0
