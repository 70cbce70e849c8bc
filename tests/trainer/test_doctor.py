"""Checks what `doctor` reports about this machine, with data and without."""

import io

from rich.console import Console

from tests.programs import ROOT
from tests.trainer.conftest import arguments_in
from trainer.cli import run_command
from trainer.commands import doctor as module
from trainer.commands.doctor import Finding, check_data, doctor, ffmpeg, machine, space
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
    for what in ("GPU", "torch", "DALI", "torch.compile", "apex", "extras", "disk", "/dev/shm", "CPU"):
        assert what in shown
    assert all(finding.state != "bad" for finding in machine())


def test_what_is_missing_comes_with_a_way_out(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, shown = said(["--exp", "ma52"])
    assert code == 2
    assert "fix these first: annotations, videos" in shown
    findings = list(check_data(EXPERIMENTS["ntu60"]))
    expected = [("annotations", "bad"), ("weights", "ok"), ("videos", "bad")]
    assert [(finding.what, finding.state) for finding in findings] == expected
    assert all(finding.fix for finding in findings)
    assert "ntu60_2d.pkl of MMAction2" in findings[0].fix
    assert "the videos of NTU RGB+D 60" in findings[-1].fix
    of_ma52 = check_data(EXPERIMENTS["ma52"])
    assert "data.annotations" in next(of_ma52).fix
    assert "data.val_annotations" in next(of_ma52).fix
    assert space("disk", tmp_path, 1e9, "buy one") == Finding(
        "disk", "note", details=space("", tmp_path, 0, "").details, fix="buy one"
    )


def test_published_names_are_those_of_the_pages():
    data, weights = ((ROOT / "docs" / page).read_text() for page in ("data.md", "weights.md"))
    for annotations, videos in module.PUBLISHED_DATA.values():
        assert annotations.split()[0] in data
        assert videos in data
    for experiment, file in module.PUBLISHED_WEIGHTS.items():
        assert f"`{experiment}`" in weights
        assert f"`{file.split()[0]}`" in weights
    table = weights.partition("## What to start from")[2].splitlines()
    cells = "".join(line.split("|")[1] for line in table if line.startswith("| `"))
    assert all(f"`{name}`" in cells for name in EXPERIMENTS if name != "demo")


def test_data_and_packs_in_place(tiny, tmp_path):
    there = [*tiny, "--set", "data.demo=None"]
    code, shown = said(there)
    assert code == 0, shown
    assert "64 of 64 clips" in shown or "63 of 64 clips" in shown, shown
    code, shown = said([*there, "--set", f"data.packs={tmp_path}"])
    assert code == 0
    assert "none for" in shown
    other = ("clip.rgb_frames=4", "data.num_classes=2", "data.class_names=()", "data.coarse_map=(0,1)")
    code, shown = said([*there, *(part for setting in other for part in ("--set", setting))])
    assert code == 2
    assert "fix these first: annotations" in shown
    (tmp_path / "damaged.pkl").write_bytes(b"not a pickle")
    code, shown = said([*there, "--set", f"data.annotations={tmp_path}/damaged.pkl"])
    assert code == 2
    assert "fix these first: annotations" in shown


def test_an_old_ffmpeg_is_named():
    for version in ("8.1.2", "n8.1.3-static", "8.2", "9.0.1"):
        assert ffmpeg(version).state == "ok"
    for version in ("8.1.1", "8.1", "n7.1.3", "4.4.2-0ubuntu0.22.04.1", "N-118000-gabcdef", ""):
        assert ffmpeg(version).state == "note"
        assert "CVE-2026-8461" in ffmpeg(version).details


def test_as_a_command(capsys, tmp_path):
    assert run_command(["doctor", *arguments_in(tmp_path)]) == 0
    assert "the demo makes its own" in capsys.readouterr().out


def test_libraries_and_extras_that_are_missing(monkeypatch):
    assert module.video_engine("libc.so.6").state == "ok"
    finding = module.video_engine("libabsent.so.1")
    assert (finding.state, finding.fix) == ("note", "start the container with NVIDIA_DRIVER_CAPABILITIES=all")
    monkeypatch.setattr(module, "EXTRAS", {"export": "numpy", "pose": "an_absent_package"})
    assert module.extras() == Finding("extras", "ok", "export installed", "optional: pip install -e '.[pose]'")
    assert "optional: pip install -e '.[pose]'" in said([])[1]


def test_a_machine_without_a_compiler_or_with_a_foreign_apex(tmp_path, monkeypatch):
    (tmp_path / "apex").mkdir()
    (tmp_path / "apex" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.delenv("CXX", raising=False)
    code, shown = said([])
    assert code == 0
    assert "there is no C" in shown
    assert "pip uninstall apex" in shown
