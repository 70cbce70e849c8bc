"""The first look times its choices on a GPU, which is the CPU here, with a clock that the tests set."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from trainer.runtime import first_look
from trainer.runtime.decisions import Decisions

CUDA = torch.device("cuda", 0)


@pytest.fixture
def run(build_pose):
    run = build_pose()
    run.ranks = replace(run.ranks, device=CUDA)
    with torch.backends.cudnn.flags(benchmark=False):
        yield run


@pytest.mark.parametrize(
    ("seconds", "choice", "said"),
    [
        (0.5, True, "on (2.00 times as fast)"),
        (0.99, False, "off (1.01 times as fast)"),
        (2.0, False, "off (0.50 times as fast)"),
        (None, False, "off (0.00 times as fast)"),  # the memory does not suffice
    ],
)
def test_the_benchmark_mode_is_on_if_it_makes_steps_faster(run, monkeypatch, seconds, choice, said):
    """Without the mode, a step takes a second."""
    now = [0.0]

    def gradients_of(*_):
        if torch.backends.cudnn.benchmark and seconds is None:
            return None
        now[0] += seconds if torch.backends.cudnn.benchmark else 1.0
        return []

    monkeypatch.setattr(first_look, "gradients_of", gradients_of)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    sentence = first_look.choose_benchmark(run, None, lambda: now[0])  # pyright: ignore[reportArgumentType]
    assert sentence == f"cuDNN's benchmark mode is {said}"
    assert torch.backends.cudnn.benchmark is choice


def test_the_memory_of_a_step_is_told(run, monkeypatch):
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 31_240_000_000)
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=139_800_000_000)
    )
    assert first_look.memory(run) == "a step takes 31.2 of 139.8 GB of memory"
    run.ranks = replace(run.ranks, device=torch.device("cpu"))
    assert first_look.memory(run) == ""


@pytest.mark.parametrize(("own", "earlier", "expected"), [(None, 0.65, 0.65), (0.9, 0.65, 0.9), (None, None, 0.75)])
def test_the_load_of_the_jpeg_engine_is_that_of_the_snapshot(run, monkeypatch, own, earlier, expected):
    """A setting comes before the snapshot, and only without both is the load timed."""
    model = SimpleNamespace(rgb=True)
    run.experiment = SimpleNamespace(streams=("rgb",), data=SimpleNamespace(source="packs"), jpeg_load=own, model=model)
    run.train_loader.backends.decoder, run.train_loader.backends.hw_decoder_load = "mixed", 0.0
    run.decisions = Decisions(hw_decoder_load=earlier)
    monkeypatch.setattr(first_look, "why_not_mixed", lambda loader: None)
    monkeypatch.setattr(first_look, "fastest_load", lambda *_: 0.75)
    first_look.look_at_data(run)
    assert run.train_loader.backends.hw_decoder_load == expected
