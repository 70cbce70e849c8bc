"""The first look, before step 1, replaces code that gives wrong results, and keeps the fastest choices.

It changes nothing else.
"""

import json
import time
from dataclasses import replace
from itertools import accumulate
from pathlib import Path

import pytest
import torch
from torch._functorch.aot_autograd import make_boxed_func

from kernels.heatmap import fused
from pipelines.trial import BATCHES
from tests.planner.cards import T4
from tests.programs import run_ranks
from tests.trainer.test_fallbacks import assert_same, compile_by, lines, trained
from tests.trainer.test_resume import assert_equal
from trainer.loop import step_or_advice
from trainer.report.page.contents import decisions_of
from trainer.resume import state_of, take_up
from trainer.runtime.first_look import FILE, data, fastest, fastest_load, look, look_at_data, relative_distance
from trainer.runtime.forward import Way
from trainer.runtime.precision import LossScale, precision_of
from trainer.session import set_up_steps

# Both streams with one block each. The batches are small, because Triton's interpreter draws their heatmaps.
ONE_BLOCK = (
    *("model.rgb.widths=(8,)", "model.rgb.blocks=(1,)", "model.pose.widths=(8,)", "model.pose.blocks=(1,)"),
    *("optim.batch_size=4", "clip.rgb_frames=2", "clip.pose_frames=4", "optim.ema=0.9"),
)


@pytest.fixture(autouse=True)
def new_compiler():
    yield
    torch._dynamo.reset()


def wrong_by(share):
    """Return a compiler whose backward pass returns gradients that are too large by the given share."""

    def compiler(graph, inputs):
        def backward(*values):
            return [value if value is None else value * (1 + share) for value in graph.forward(*values)]

        return make_boxed_func(backward)

    return compiler


def test_a_compiled_step_that_agrees(build_pose, tmp_path, monkeypatch):
    undisturbed = trained(build_pose, "compile=False")
    compile_by(monkeypatch)
    run = trained(build_pose, "compile=True")
    (line,) = lines(tmp_path, "first look")
    assert "gradients of the compiled step are within 0 % of an uncompiled step's" in line
    assert [line.partition(" - INFO - ")[2]] == decisions_of(tmp_path / "journal" / "train.log")
    assert run[0].forward.way is Way.COMPILED
    decisions = {"network": "compiled", "cudnn_benchmark": False}
    decisions |= {"renderer": "reference", "decoder": "cpu", "hw_decoder_load": 0.75, "kernels_failed": False}
    assert json.loads((tmp_path / "journal" / FILE).read_text()) == decisions
    assert json.loads(state_of(run[0])["first_look"]) == decisions
    assert_same(run, undisturbed)


def test_a_compiled_step_that_is_wrong(build_pose, tmp_path, monkeypatch):
    undisturbed = trained(build_pose, "compile=False")
    compile_by(monkeypatch, bw_compiler=wrong_by(0.02))
    run = trained(build_pose, "compile=True")
    (line,) = lines(tmp_path, "torch.compile")
    assert "its gradients differ by 2 % from those of an uncompiled step" in line
    assert json.loads((tmp_path / "journal" / FILE).read_text())["network"] == "direct"
    assert_same(run, undisturbed)


def test_a_resumed_run_keeps_what_was_timed(build_pose, tmp_path, monkeypatch):
    compile_by(monkeypatch)
    run, _ = trained(build_pose, "compile=False")
    state = state_of(run) | {"first_look": json.dumps({"network": "compiled", "cudnn_benchmark": True})}
    (tmp_path / "journal" / FILE).touch()
    again = build_pose("compile=True")
    take_up(again, state)
    with torch.backends.cudnn.flags(benchmark=False):
        look(again, next(again.train_loader.epoch(0)), time.perf_counter)
        assert torch.backends.cudnn.benchmark
    assert "as in the snapshot" in lines(tmp_path, "first look")[-1]
    assert json.loads(state_of(again)["first_look"])["cudnn_benchmark"]


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        ({"a": [1, 1, 1, 1, 1], "b": [0.9] * 5}, "b"),
        ({"a": [1, 1, 1, 1, 1], "b": [0.99] * 5}, "a"),
        ({"a": [1, 1, 1, 1, 1], "b": [0.8, 1.1, 1.1, 0.8, 1.1]}, "a"),
        ({"a": [1, 1, 1, 1, 1], "b": [0.9] * 5, "c": [0.8] * 5}, "c"),
    ],
)
def test_the_fastest_choice(seconds, expected):
    """The first run of each choice is not counted, because it takes long."""
    rounds = zip(*([100, *samples] for samples in seconds.values()), strict=True)
    times = iter(accumulate(value for turn in rounds for sample in turn for value in (0, sample)))
    done = []
    choice, gain = fastest(list(seconds), done.append, lambda: next(times))
    assert choice == expected
    assert done == list(seconds) * 6
    assert (gain > 1.02) == (choice != "a")


def test_distance_of_gradients():
    one, two = [torch.tensor([3.0]), torch.tensor([4.0])], [torch.tensor([3.0]), torch.tensor([4.5])]
    assert relative_distance(two, one) == pytest.approx(0.1)
    assert relative_distance(one, one) == 0
    assert relative_distance([torch.tensor([float("nan")]), one[1]], one) == 9


DISAGREE = """
import sys
from pathlib import Path
import torch
from tests.trainer.test_fallbacks import as_it_is
from tests.trainer.test_first_look import wrong_by
from torch._dynamo.backends.common import aot_autograd
import tyro
from trainer.commands.train import Options
from trainer.data import build_loaders
from trainer.journal.journal import Journal
from trainer.loop import step_or_advice
from trainer.run import build_run
from trainer.runtime.ranks import join
from trainer.runtime.signals import Interrupt
from trainer.session import set_up_steps
from trainer.settings import experiment_of
from trainer.snapshots.writer import NoWriter

experiment = experiment_of(tyro.cli(Options, args=[*sys.argv[2:], "--set", "compile=True"]))
with join("cpu") as ranks, Interrupt() as interrupt:
    real = torch.compile
    backend = aot_autograd(fw_compiler=as_it_is, bw_compiler=wrong_by(0.5) if ranks.rank else as_it_is)
    torch.compile = lambda network, **_: real(network, fullgraph=True, backend=backend)
    journal = Journal(Path(sys.argv[1]), ranks.rank)
    run = build_run(experiment, ranks, build_loaders(experiment, ranks, print), journal, NoWriter(), interrupt)
    set_up_steps(run, None, Path())
    step_or_advice(run, next(run.train_loader.epoch(0)))
    print(run.forward.way.name, run.decisions.network, torch.backends.cudnn.benchmark)
"""


def test_two_ranks_that_disagree_decide_alike(tiny_pose, environment, tmp_path):
    for done in run_ranks(*[("-c", DISAGREE, tmp_path / "run", *tiny_pose)] * 2, environment=environment):
        assert done.returncode == 0, done.stdout + done.stderr
        assert done.stdout.splitlines()[-1] == "DIRECT direct False"


@pytest.fixture
def build_on_t4(build_pose, monkeypatch):
    """Return a function that makes a run on the CPU, in which precision and loader are chosen as on a T4."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (T4.major, T4.minor))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: T4.name)

    def decide(setting, ranks):
        return replace(precision_of(setting, replace(ranks, device=torch.device("cuda", 0))), device=ranks.device)

    monkeypatch.setattr("trainer.run.precision_of", decide)
    monkeypatch.setattr("trainer.data.precision_of", decide)

    def make(*settings):
        run = build_pose("optim.batch_size=4", "clip.pose_frames=4", *settings)
        run.train_loader.backends.renderer = "kernel"
        set_up_steps(run, None, Path())
        return run

    return make


@pytest.mark.parametrize(("share", "way"), [(0, Way.COMPILED), (0.5, Way.DIRECT)])
def test_a_first_look_on_a_t4(build_on_t4, tmp_path, monkeypatch, share, way):
    compile_by(monkeypatch, bw_compiler=wrong_by(share))
    run, undisturbed = build_on_t4("compile=True"), build_on_t4("compile=False")
    assert run.precision.reason.startswith("Tesla T4 (sm_75) has no bf16, so the run computes in fp16")
    assert isinstance(run.scale, LossScale)
    look_at_data(run)
    batch = next(run.train_loader.epoch(0))
    assert batch.heatmap is not None
    assert batch.heatmap.dtype is torch.float16
    for one in (run, undisturbed):
        step_or_advice(one, batch)
    (line,) = lines(tmp_path, "first look")
    assert "the Triton kernel draws the heatmaps" in line
    assert ("gradients of the compiled step are within" in line) == (way is Way.COMPILED)
    assert run.forward.way is way
    for part in ("model", "optimizer", "scale"):
        assert_equal(state_of(run)[part], state_of(undisturbed)[part], part)


@pytest.fixture
def run_on_a_card(build):
    """Return a run on the CPU whose loader starts as on a GPU.

    The loader uses the heatmap kernel (interpreted) and the JPEG engine.
    """
    run = build(*ONE_BLOCK, "compile=False")
    backends = run.train_loader.backends
    backends.renderer, backends.decoder = "kernel", "mixed"
    return run


def test_a_kernel_that_agrees_stays_and_a_missing_jpeg_engine_does_not(run_on_a_card, capsys):
    look_at_data(run_on_a_card)
    backends = run_on_a_card.train_loader.backends
    assert (backends.renderer, backends.decoder) == ("kernel", "cpu")
    assert data(run_on_a_card) == "the Triton kernel draws the heatmaps; the CPU decodes the frames"
    printed = capsys.readouterr().out
    assert "heatmap kernel" not in printed
    assert printed.count("the GPU cannot decode JPEG frames") == 1


def test_a_kernel_that_draws_wrongly_is_replaced(run_on_a_card, capsys, monkeypatch):
    draw = fused.render_heatmaps
    monkeypatch.setattr(fused, "render_heatmaps", lambda *arguments, **options: draw(*arguments, **options) * 1.1)
    look_at_data(run_on_a_card)
    assert run_on_a_card.train_loader.backends.renderer == "reference"
    printed = capsys.readouterr().out
    assert printed.count("the heatmap kernel cannot be used (its values differ from those of plain torch by") == 1


def test_the_load_of_the_jpeg_engine_is_timed_once(run_on_a_card, monkeypatch):
    """By the faked clock, a batch takes 0.5 s if the JPEG engine decodes 65 % of the images, and 1 s otherwise.

    The clock is faked, because here the CPU decodes all images, so the real times do not differ.
    """
    backends, moments, tried = run_on_a_card.train_loader.backends, [0.0], []
    backends.decoder = "cpu"
    make = run_on_a_card.train_loader.frames.decode

    def decode(plans, decoding):
        tried.append(decoding.backends.hw_decoder_load)
        # The steps repeat BATCHES batches, so only the measurement of the first load reads files from the storage.
        assert len({tuple(plans(step).row) for step in range(10)}) == BATCHES
        decoder, load = make(plans, decoding), decoding.backends.hw_decoder_load
        real = decoder.next

        def timed():
            moments.append(moments[-1] + (0.5 if load == 0.65 else 1.0))
            return real()

        decoder.next = timed
        return decoder

    monkeypatch.setattr(run_on_a_card.train_loader.frames, "decode", decode, raising=False)
    assert fastest_load(run_on_a_card, lambda: moments[-1]) == 0.65
    assert tried == [0.75, 0.65, 0.9]
