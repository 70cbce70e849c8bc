"""What the doctor finds on this machine, with data and without."""

import io

from rich.console import Console

from tests.trainer.conftest import arguments_in
from trainer import doctor as module
from trainer.cli import run_command
from trainer.doctor import Finding, data_of, doctor, machine, space
from trainer.experiments import EXPERIMENTS


def said(options: list[str]) -> tuple[int, str]:
    import tyro

    shown = io.StringIO()
    code = doctor(tyro.cli(module.DoctorOptions, args=options), Console(file=shown))
    return code, shown.getvalue()


def test_a_machine_that_passes_these_tests_can_train():
    code, shown = said([])
    assert code == 0, shown
    assert "training can start" in shown
    for what in ("GPU", "torch", "DALI", "torch.compile", "apex", "disk", "/dev/shm", "CPU"):
        assert what in shown
    assert all(finding.state != "bad" for finding in machine())


def test_what_is_missing_comes_with_a_way_out(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, shown = said(["--exp", "ma52"])
    assert code == 2
    assert "to be mended first: annotations, annotations, videos" in shown
    found = list(data_of(EXPERIMENTS["ntu60"]))
    assert [(finding.what, finding.state) for finding in found] == [("annotations", "bad"), ("videos", "bad")]
    assert all(finding.fix for finding in found)
    assert space("disk", tmp_path, 1e9, "buy one") == Finding(
        "disk", "note", found=space("", tmp_path, 0, "").found, fix="buy one"
    )


def test_data_and_packs_in_place(tiny, tmp_path):
    there = [*tiny, "--set", "data.demo=None"]
    code, shown = said(there)
    assert code == 0, shown
    assert "packs" in shown
    code, shown = said([*there, "--set", f"data.packs={tmp_path}"])
    assert code == 0
    assert "none for" in shown
    code, shown = said(
        [*there, "--set", "clip.rgb_frames=4", "--set", "data.num_classes=2", "--set", "data.coarse_map=(0,1)"]
    )
    assert code == 2
    assert "to be mended first: packs" in shown


def test_as_a_command(capsys, tmp_path):
    assert run_command(["doctor", *arguments_in(tmp_path)]) == 0
    assert "the demo makes its own" in capsys.readouterr().out
