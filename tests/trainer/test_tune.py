"""`tune` keeps a change of settings only if steps become faster and compute the same. Runs use the result."""

import importlib.util
import json
import os
import re
import shutil
import signal
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import tyro

from kernels.program import UserError
from kernels.whole_files import SEAL_BYTES, sealed
from models.networks import build_model
from tests.programs import ROOT, Fork, run, run_forked, run_ranks, wait_for_end
from tests.trainer.form_of_step import FORMS
from trainer.cli import dispatch, run_command
from trainer.commands.train import Options, tuning_command
from trainer.commands.tune import TuneOptions, draw, summary, tune_command
from trainer.config import EXECUTION
from trainer.experiments import EXPERIMENTS
from trainer.report.page.contents import decisions_of
from trainer.runtime.ranks import Ranks
from trainer.runtime.threads import use_threads
from trainer.runtime.tuning import tune
from trainer.runtime.tuning.candidates import Machine, of_the_loader, of_the_step
from trainer.runtime.tuning.choice import (
    Lookup,
    Tuned,
    cores_of_rank,
    execution_of,
    file_of,
    in_words,
    key_of,
    read,
    write,
)
from trainer.runtime.tuning.code import digest_of_code
from trainer.runtime.tuning.search import LOSS_BOUNDS, NORM_BOUNDS
from trainer.runtime.tuning.trial import answers_to, needs_more_memory, without_dropout
from trainer.settings import experiment_of, override
from trainer.stored import to_settings

DEMO = EXPERIMENTS["demo"]
CPU = Ranks(0, 0, 1, torch.device("cpu"))
FORM = (str(Path(__file__).with_name("form_of_step.py")),)
FIXED = {"threads": 1, "interop_threads": torch.get_num_interop_threads(), "compile": False, "prefetch": 2}
FIXED |= {"decode_threads": 1}


@pytest.fixture(autouse=True)
def empty_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def search(*forms, **more):
    changes = [lambda experiment, form=form: FORMS[form] for form in forms]
    return tune(DEMO, device="cpu", minutes=0.02, changes=changes, worker=FORM, patience=2.0, **more)


def test_each_bad_candidate_is_dropped_with_its_reason():
    bad = {
        "wrong": ("wrong", "its loss in step 3 is 1.81, not 1.8"),
        "nan": ("wrong", "its loss in step 3 is nan, not 1.8"),
        "wrong gradients": ("wrong", "its gradient norm in step 2 is 2, not 4"),
        "raises": ("failed", "ValueError: no such kernel"),
        "no memory": ("no memory", "OutOfMemoryError: CUDA out of memory"),
        "killed": ("no memory", "it was killed, as happens if the machine's memory is full"),
        "crashes": ("failed", "it ended with exit code 1 (Segmentation fault somewhere)"),
        "hangs": ("hung", "no answer within 2 s"),
        "hangs in a turn": ("hung", "no answer within 2 s"),
        "slower": ("no faster", ""),
        "as fast": ("no faster", ""),
    }
    result = search(*bad, "faster")
    assert [(row.verdict, row.reason) for row in result.rows] == [("default", ""), *bad.values(), ("chosen", "")]
    assert result.experiment == override(DEMO, FORMS["faster"])
    assert result.gain == pytest.approx(1.25, rel=0.01)
    assert result.finished


def test_the_default_stands_if_nothing_is_faster():
    result = search("slower", "as fast")
    assert result.experiment == DEMO
    told = read_back().sentence()
    assert told.endswith(": the plain uncompiled step is the fastest")


def test_what_was_chosen_one_by_one_is_measured_together():
    result = search("faster", "fastest")
    assert [row.change for row in result.rows] == ["", FORMS["faster"], FORMS["fastest"], "all chosen changes"]
    assert result.gain == pytest.approx(2.5, rel=0.01)
    assert read_back().sentence().endswith(": prefetch 5; 2.50 times as fast as the plain uncompiled step")


def test_a_change_of_a_fixed_setting_is_not_tried():
    assert [row.change for row in search("faster", fixed=frozenset({"prefetch"})).rows] == [""]


def test_no_time_is_left(monkeypatch):
    monkeypatch.setattr("trainer.runtime.tuning.search.FEWEST", 3)
    result = tune(DEMO, device="cpu", minutes=1e-9, changes=[lambda _: FORMS["faster"]], worker=FORM)
    assert [(row.verdict, row.reason) for row in result.rows[1:]] == [("not tried", "the time was used up")]


def read_back(experiment=DEMO) -> Tuned:
    tuned = read(key_here(experiment))
    assert tuned is not None
    return tuned


def key_here(experiment, ranks=1):
    clips = experiment.optim.batch_size // ranks
    return key_of(experiment, "cpu", clips, ranks == 1, cores_of_rank(ranks))


KILLED = """
from tests.trainer import test_tune
changes = [lambda experiment, form=form: test_tune.FORMS[form] for form in ("faster", "hangs")]
test_tune.tune(test_tune.DEMO, device="cpu", minutes=0.02, changes=changes, worker=test_tune.FORM, progress=print)
print("ended")
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_search_that_is_ended_leaves_what_it_knows(number):
    with Fork(("-c", KILLED)) as process:
        deadline = time.monotonic() + 120
        while not (known := known_so_far()) or known.tried < 1 or not (children := children_of(process.pid)):
            assert process.poll() is None, process.stdout + process.stderr
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(number)
        process.wait(60)
    wait_for_end(*children)
    tuned = read_back()
    assert not tuned.finished
    assert (tuned.tried, tuned.of) == (1, 2)
    experiment, sentence = Lookup(frozenset(), "tune").settings_for(DEMO, CPU)
    assert experiment == override(DEMO, FORMS["faster"])
    assert sentence is not None
    assert "1 of 2 candidates" in sentence


def known_so_far():
    with suppress(UserError):
        return read(key_here(DEMO))


def children_of(pid):
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_a_search_that_is_ended_does_not_replace_a_finished_one():
    finished = search("faster").path.read_text()
    with pytest.raises(RuntimeError):
        tune(DEMO, device="cpu", changes=[broken], worker=FORM)
    assert file_of(key_here(DEMO)).read_text() == finished


def broken(experiment):
    raise RuntimeError


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[:100],
        lambda text: "[]",
        lambda text: text.replace('"format": 1', '"format": 99'),
        lambda text: text.replace('"clips": 16', '"clips": 17'),
        lambda text: text.replace('"prefetch": 4', '"prefetch": "many"'),
        lambda text: text.replace('"prefetch": 4', '"prefetch": -4'),
        lambda text: "[" * 100_000,
    ],
)
@pytest.mark.parametrize("seals_again", [True, False])
def test_a_damaged_or_foreign_file_is_ignored_with_a_line(damage, seals_again):
    """With `seals_again`, the damaged text gets a valid checksum, so only its content shows the damage."""
    path = search("faster").path
    content = damage(path.read_bytes()[:-SEAL_BYTES].decode()).encode()
    path.write_bytes(sealed(content) if seals_again else content)
    experiment, sentence = Lookup(frozenset(), "tune").settings_for(DEMO, CPU)
    assert experiment == DEMO
    assert sentence is not None
    assert len(sentence.splitlines()) == 1
    assert sentence.endswith("tune again")
    assert sentence.startswith(f"{path} is ignored")


def test_the_key_is_about_the_step_and_not_about_its_execution():
    key = key_here(DEMO)
    for same in ("compile=true", "threads=1", "optim.lr=0.5", "seed=4", "data.videos=x", "log_every=5"):
        assert key_here(override(DEMO, same)) == key
    for other in (
        "clip.rgb_size=72",
        "optim.batch_size=8",
        "model.dropout=0.4",
        "optim.precision=bf16",
        "optim.ema=0.9",
    ):
        assert key_here(override(DEMO, other)) != key
    assert key_here(DEMO, 2) != key


def test_the_key_depends_on_code_that_decides_speed_only(tmp_path):
    shutil.copytree(
        ROOT, tmp_path, ignore=shutil.ignore_patterns(".*", "tests", "benchmarks", "docs"), dirs_exist_ok=True
    )
    before = digest_of_code(tmp_path)
    assert before == digest_of_code(ROOT)
    for path in ("trainer/loop.py", "README.md", "pipelines/prepare/make.py", "models/weights/files.py"):
        with open(tmp_path / path, "a") as file:
            file.write("\nSPEED = 1\n")
    step = tmp_path / "trainer" / "step.py"
    text = step.read_text()
    step.write_text(
        text.replace('"""Do one step of', '"""Do a step of').replace("    set_lr(", "    # first\n\n    set_lr(")
    )
    assert step.read_text() != text
    assert digest_of_code(tmp_path) == before
    for path in ("trainer/step.py", "models/layers.py", "kernels/blocks/rows.py", "pipelines/packs/source.py"):
        with open(tmp_path / path, "a") as file:
            file.write("\nSPEED = 1\n")
        before, former = digest_of_code(tmp_path), before
        assert before != former


def keep(experiment, *settings, ranks=1) -> None:
    tuned = override(experiment, *settings)
    told = in_words(experiment, tuned)
    words = {"default": "the plain uncompiled step", "tried": 3, "of": 3, "finished": True}
    write(Tuned(key=key_here(experiment, ranks), settings=execution_of(tuned), told=told, gain=1.31, **words))


def test_the_command_line_wins():
    keep(DEMO, "threads=1", "align_channels=true")
    own = override(DEMO, "threads=2")
    experiment, sentence = Lookup(frozenset({"threads", "optim.lr"}), "tune").settings_for(own, CPU)
    assert experiment == override(DEMO, "threads=2", "align_channels=true")
    assert sentence is not None
    assert sentence.endswith(
        ": aligned channels, threads 1; 1.31 times as fast as the plain uncompiled step (but threads as set on the "
        "command line)"
    )


def test_advice_on_long_runs_names_a_command_that_is_one():
    words = ["--exp", "demo", "--set", "clip.sigma=0.7", "--ranks", "2", "--device", "cpu", "--max-steps", "9"]
    command = tuning_command(tyro.cli(Options, args=words))
    assert command == "python -m trainer tune --set clip.sigma=0.7 --exp demo --ranks 2 --device cpu"
    options = tyro.cli(TuneOptions, args=command.split()[4:])
    assert experiment_of(options) == override(DEMO, "clip.sigma=0.7")
    lookup = Lookup(frozenset(), command)
    assert lookup.advice("cpu", 10_000) is None
    for device, clips in (("cpu", 1e6), ("cuda", 10)):
        assert f"`{command}`" in str(lookup.advice(device, clips))


def test_a_run_uses_the_settings_and_its_snapshot_wins_on_resume(tiny, tmp_path, capsys):
    experiment = experiment_of(tyro.cli(Options, args=tiny))
    keep(experiment, "align_channels=true", "prefetch=3")
    arguments = [*tiny, "--work-dir", str(tmp_path / "run")]
    assert dispatch([*arguments, "--max-steps", "1"]) == 0
    assert "aligned channels, prefetch 3; 1.31 times as fast as the plain uncompiled step" in capsys.readouterr().out
    keep(experiment, "prefetch=4")
    # A resume without the setting align_channels, which is in the snapshot, would be refused.
    assert dispatch([*arguments, "--resume", "--max-steps", "2"]) == 0
    assert "tuned" not in capsys.readouterr().out
    stored = json.loads((tmp_path / "run" / "experiment.json").read_text())
    assert (stored["align_channels"], stored["prefetch"]) == (True, 3)
    assert dispatch([*tiny, "--work-dir", str(tmp_path / "plain"), "--no-tuned", "--max-steps", "0"]) == 0
    assert "tuned" not in capsys.readouterr().out
    assert json.loads((tmp_path / "plain" / "experiment.json").read_text())["prefetch"] == 2


OWN_CACHE = """
import os, sys
os.environ["XDG_CACHE_HOME"] = sys.argv.pop(1)
from trainer.cli import main
main()
"""


def test_two_ranks_with_different_caches_train_alike(tiny, environment, tmp_path, monkeypatch):
    experiment, places = experiment_of(tyro.cli(Options, args=tiny)), [tmp_path / "0", tmp_path / "1"]
    for place, setting in zip(places, ("align_channels=true", "prefetch=4"), strict=True):
        monkeypatch.setenv("XDG_CACHE_HOME", str(place))
        keep(experiment, setting, ranks=2)
    words = [*tiny, "--work-dir", tmp_path / "run", "--max-steps", "2"]
    for done in run_ranks(*[("-c", OWN_CACHE, place, *words) for place in places], environment=environment):
        assert done.returncode == 0, done.stdout + done.stderr
    stored = json.loads((tmp_path / "run" / "experiment.json").read_text())
    assert (stored["align_channels"], stored["prefetch"]) == (True, 2)


MIXED = """
import os
from trainer.runtime.ranks import join
from trainer.runtime.tuning import choice
from tests.trainer.test_tune import DEMO, keep
name = choice.device_name
if os.environ["RANK"] == "0":
    keep(DEMO, "prefetch=4", ranks=2)
else:
    choice.device_name = lambda *_: "another card"
with join("cpu") as ranks:
    experiment, sentence = choice.Lookup(frozenset(), "tune").settings_for(DEMO, ranks)
    print(experiment.prefetch, sentence)
"""


def test_ranks_with_different_cards_use_plain_settings(environment):
    first, second = run_ranks(*[("-c", MIXED)] * 2, environment={**environment, **os.environ})
    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    assert first.stdout.startswith("2 the ranks have different cards")
    assert second.stdout == "2 None\n"


def requests(experiment, *more, with_loader=False):
    task = {"device": "cpu", "with_loader": with_loader, "threads": 0}
    return iter([{"settings": to_settings(experiment), **task}, *more])


@pytest.fixture
def small(tiny):
    return experiment_of(tyro.cli(Options, args=tiny))


@pytest.fixture
def same_threads():
    number = torch.get_num_threads()
    yield
    torch.set_num_threads(number)


@pytest.mark.parametrize("with_loader", [False, True])
def test_a_trial_answers_with_losses_and_times(small, same_threads, with_loader):
    first, ready, timed = answers_to(requests(small, {"steps": 2}, with_loader=with_loader))
    changes = ("decode_threads=2", "prefetch=3") if with_loader else ("threads=2", "align_channels=true")
    other, *_ = answers_to(requests(override(small, *changes), with_loader=with_loader))
    assert torch.get_num_threads() == (1 if with_loader else 2)
    for name in ("loss", "grad_norm"):
        assert other[name] == pytest.approx(first[name], rel=1e-4)
        assert len(set(first[name])) == len(first[name]) > 5
    assert first["precision"] == "fp32"
    assert ready["seconds"] > 0 < timed["seconds"]
    assert 0.1 < ready["gb"] < 100


def test_a_trial_whose_step_says_something_fails(small, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(RuntimeError, match="runs uncompiled and slower"):
        list(answers_to(requests(override(small, "compile=true"))))


@pytest.mark.parametrize("name", ["demo", "ma52", "ntu60_pose"])
def test_dropout_is_off_when_losses_are_compared(name):
    model = replace(EXPERIMENTS[name].model, **({"drop_path": (0.1, 0.2)} if name == "ma52" else {}))
    network = build_model(model)
    assert without_dropout(network)
    assert not without_dropout(network)
    assert not any(module.p for module in network.modules() if isinstance(module, torch.nn.Dropout))


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate(handle)"),
        RuntimeError("GET was unable to find an engine to execute this computation"),
        OSError(12, "Cannot allocate memory"),
    ],
    ids=lambda error: str(error)[:20],
)
def test_too_little_memory_has_many_spellings(error):
    assert needs_more_memory(error)
    assert not needs_more_memory(RuntimeError("no kernel image is available"))


@pytest.mark.parametrize("steps", [8, pytest.param(40, marks=pytest.mark.soak)])
def test_steps_tuned_and_untuned_have_the_same_losses(small, same_threads, monkeypatch, steps):
    monkeypatch.setattr("trainer.runtime.tuning.trial.LOSS_STEPS", steps)
    plain, *_ = answers_to(requests(small))
    assert len(plain["loss"]) == steps
    for settings in (("threads=2",), ("threads=2", "align_channels=true", "fused=x3d_block")):
        tuned, *_ = answers_to(requests(override(small, *settings)))
        assert tuned["loss"] == pytest.approx(plain["loss"], rel=LOSS_BOUNDS["fp32"])
        assert tuned["grad_norm"] == pytest.approx(plain["grad_norm"], rel=NORM_BOUNDS["fp32"])


def of(device, **more):
    machine = {"cores": 8, "threads": 8, "interop_threads": 8, "precision": "bf16", "alone": True}
    return Machine(device=device, **machine | more)


@pytest.mark.parametrize("name", ["ntu60_x3d", "ntu60"])
def test_what_is_tried_on_a_gpu(name):
    experiment = EXPERIMENTS[name]
    tried = [change(experiment) for change in (*of_the_step(of("cuda")), *of_the_loader(of("cuda")))]
    part, aligned = ("x3d_block", "align_channels=true") if name == "ntu60_x3d" else ("bottlenecks", None)
    assert tried == [
        *("cudnn_benchmark=true", aligned, "combine_launches=true", f"fused={part}", "fused=norm_act"),
        *("compile=false", "optim.precision=fp16", "cuda_graph=true", "decode_threads=8", "decode_threads=4"),
        *("prefetch=4", "jpeg_load=0.65", "jpeg_load=0.9"),
    ]
    best = override(experiment, f"fused={part}", "compile=false")
    assert [change(best) for change in of_the_step(of("cuda", alone=False))] == [
        *("cudnn_benchmark=true", aligned, None, None, f"fused={part},norm_act", None, None),
    ]


def test_the_optimizer_of_apex_is_tried_where_its_extension_is(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name == "amp_C" or find(name))
    experiment = EXPERIMENTS["ntu60_x3d"]
    *_, change, graph = of_the_step(of("cuda"))
    assert (change(experiment), graph(experiment)) == ("optim.impl=apex", "cuda_graph=true")
    for other in ("cuda_graph=true", "optim.impl=torch", "optim.kind=adamw"):
        assert change(override(experiment, other)) is None
    assert graph(override(experiment, "optim.impl=apex")) is None
    assert key_here(override(experiment, "optim.impl=apex")) == key_here(experiment)


def test_what_is_tried_on_a_cpu():
    tried = [change(DEMO) for change in (*of_the_step(of("cpu", threads=1)), *of_the_loader(of("cpu")))]
    assert tried == [
        *("threads=8", "threads=4", "threads=2", "interop_threads=1", "align_channels=true", "compile=true"),
        *("decode_threads=8", "decode_threads=4", "prefetch=4"),
    ]
    for assignment in tried:
        assert override(DEMO, assignment) != DEMO


def test_every_change_is_one_of_a_setting_that_is_stored():
    for device in ("cpu", "cuda"):
        for change in (*of_the_step(of(device)), *of_the_loader(of(device))):
            assert (assignment := change(EXPERIMENTS["ntu60_x3d"])) is None or assignment.partition("=")[0] in EXECUTION


def test_threads_for_operators_can_only_be_set_in_time():
    use_threads(replace(DEMO, interop_threads=torch.get_num_interop_threads()))
    with suppress(UserError):  # raised if an earlier test has set the number or used the threads
        use_threads(replace(DEMO, interop_threads=3))
    with pytest.raises(UserError, match="leave this setting out, or use a new process"):
        use_threads(replace(DEMO, interop_threads=4))  # torch accepts only one change of this number
    use_threads(DEMO)


def test_the_picture_shows_all_that_was_measured():
    rows = search("slower", "raises", "faster").rows
    (axes,) = draw(rows, "demo").axes
    assert len(axes.patches) == 3
    assert [label.get_text() for label in axes.get_yticklabels()] == ["the default", FORMS["slower"], FORMS["faster"]]


def test_the_output_says_that_one_of_several_ranks_was_measured():
    result, options = search("slower"), tyro.cli(TuneOptions, args=["--exp", "demo"])
    first, *_ = summary(result, options, 2)
    assert first == "only one of 2 ranks was measured: the times do not include the exchange of gradients"
    assert not any("ranks" in line for line in summary(result, options, 1))


def test_mistakes_are_told_in_one_sentence(tiny, monkeypatch, capsys, tmp_path):
    assert run_command(["tune", *tiny, "--minutes", "0"]) == 2
    assert "the time must be positive, as in --minutes 10" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    with monkeypatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
        with pytest.raises(UserError, match="XDG_CACHE_HOME to a folder that can be written"):
            search("faster")
    assert search("faster").finished
    with pytest.raises(UserError, match="the default step fails"):
        tune(override(DEMO, FORMS["raises"]), device="cpu", worker=FORM)
    with pytest.raises(UserError, match=r"add --set optim.accumulate=2, or lower optim.batch_size"):
        tune(override(DEMO, FORMS["no memory"]), device="cpu", worker=FORM)
    with monkeypatch.context() as patch:
        patch.setenv("TORCHELASTIC_RUN_ID", "x")
        with pytest.raises(UserError, match="start it without torchrun or srun"):
            tune_command(tyro.cli(TuneOptions, args=tiny))


def test_the_command_prints_a_table_and_a_run_uses_the_result(tiny, tmp_path):
    """Only align_channels is tried, because each change that is tried starts a process, which takes time."""
    fixed = [word for name, value in FIXED.items() for word in ("--set", f"{name}={value}")]
    done = run("-m", "trainer", "tune", *tiny, *fixed, "--minutes", "0.02")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "the default" in done.stdout
    assert "align_channels=true" in done.stdout
    experiment = experiment_of(tyro.cli(Options, args=[*tiny, *fixed]))
    tuned = read_back(experiment)
    assert tuned.finished
    assert file_of(tuned.key).with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    done = run_forked("-m", "trainer", *tiny, *fixed, "--work-dir", tmp_path / "run", "--max-steps", "1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"tuned on {tuned.key['device']}: " in done.stdout
    assert f"tuned on {tuned.key['device']}: " in " ".join(decisions_of(tmp_path / "run" / "train.log"))


@pytest.mark.soak
@pytest.mark.skipif(cores_of_rank(1) < 2, reason="a second thread needs a second core")
def test_a_default_of_one_thread_is_found_to_be_slow(tiny, tmp_path):
    """Needs a machine with two idle cores. The networks and images are those of the demo, so the step is long enough
    for a second thread to help."""
    data = [word for pair in zip(tiny[2::2], tiny[3::2], strict=True) for word in pair if "data." in pair[1]]
    fixed = [word for name, value in FIXED.items() if name != "threads" for word in ("--set", f"{name}={value}")]
    words = ["--exp", "demo", *data, *fixed, "--set", "align_channels=true"]
    slow = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = run("-m", "trainer", "tune", *words, "--minutes", "0.5", environment=slow, timeout=None)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "the fastest is threads 2" in done.stdout
    done = run("-m", "trainer", *words, "--work-dir", tmp_path / "run", "--max-steps", "1", environment=slow)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"tuned on .*: threads 2; \d\.\d\d times as fast as the plain uncompiled step", done.stdout)
