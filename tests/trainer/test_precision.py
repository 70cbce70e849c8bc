"""The precision of a run depends on its GPUs. Its heatmaps, kernels and loss scale depend on the precision."""

from dataclasses import replace

import pytest
import torch

from models.weights.files import write_file
from models.weights.nets import shapes_of
from tests import programs
from tests.planner.cards import A100, B200, CARDS, T4, Card
from trainer.cli import run_command
from trainer.commands import doctor
from trainer.experiments import EXPERIMENTS
from trainer.runtime.cards import has_code, parsed
from trainer.runtime.precision import LossScale, NoLossScale, Precision, precision_of
from trainer.runtime.ranks import Ranks
from trainer.session import introduce

CUDA = torch.device("cuda", 0)
V100 = replace(T4, name="Tesla V100-SXM2-32GB", major=7, minor=0)
CUDA_13 = ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120", "compute_120"]  # architectures in torch's wheels
CUDA_12 = ["sm_50", "sm_60", "sm_70", "sm_75", "sm_80", "sm_86", "sm_90"]


@pytest.fixture
def plug_in(monkeypatch):
    """Return a function that makes torch see the cards passed to it, as if the machine had them."""

    def plug(*cards: Card, architectures=CUDA_13):
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)  # tests/conftest.py hides the machine's GPUs
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: len(cards))
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: cards[index].name)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (cards[index].major, cards[index].minor))
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: cards[index])
        monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: architectures)

    return plug


@pytest.mark.parametrize("card", CARDS.values(), ids=CARDS)
def test_auto_means_bf16_and_on_older_cards_fp16_with_a_scaled_loss(plug_in, card):
    plug_in(card)
    precision = precision_of("auto", Ranks(0, 0, 1, CUDA))
    assert precision.name == ("bf16" if card is not T4 else "fp16")
    scale = replace(precision, device=torch.device("cpu")).loss_scale()
    assert isinstance(scale, NoLossScale if card is not T4 else LossScale)
    assert ("Tesla T4 (sm_75) has no bf16" in precision.reason) == (card is T4)
    assert precision_of("fp32", Ranks(0, 0, 1, CUDA)).name == "fp32"


def test_a_cpu_computes_in_float32_unless_told_otherwise():
    alone = Ranks(0, 0, 1, torch.device("cpu"))
    assert precision_of("auto", alone).dtype is torch.float32
    half = precision_of("fp16", alone)
    assert isinstance(half.loss_scale(), LossScale)
    with half():
        assert torch.get_autocast_dtype("cpu") is torch.float16


TWO_CARDS = """
import dataclasses, torch
from trainer.runtime.precision import precision_of
from trainer.runtime.ranks import join
with join('cpu') as ranks:
    torch.cuda.get_device_capability = lambda index: (7, 5) if ranks.rank else (8, 0)
    torch.cuda.get_device_name = lambda index: 'Tesla T4'
    print(precision_of('auto', dataclasses.replace(ranks, device=torch.device('cuda', 0))))
"""


def test_all_ranks_take_the_precision_that_each_of_them_has(environment):
    for done in programs.run_ranks(*[("-c", TWO_CARDS)] * 2, environment=environment):
        assert "name='fp16'" in done.stdout, done.stderr


@pytest.mark.parametrize("setting", ["fp16", "bf16", "fp32"])
def test_heatmaps_of_both_splits_follow(build, setting):
    run = build(f"optim.precision={setting}")
    for loader in (run.train_loader, run.val_loader):
        assert next(loader.epoch(0)).heatmap.dtype is run.precision.dtype


def test_kernels_of_blocks_run_in_bf16_only_on_a_card():
    parts = ("x3d_block", "norm_act")
    assert Precision("bf16", CUDA).runnable(parts) == parts
    assert Precision("fp16", CUDA).runnable(parts) == Precision("fp32", CUDA).runnable(parts) == ()
    assert Precision("fp32", torch.device("cpu")).runnable(parts) == parts


def test_the_introduction_says_the_precision_and_why(build, capsys):
    run = build()
    introduce(run)
    assert "fp32 on cpu, uncompiled" in capsys.readouterr().out
    introduce(replace(run, precision=Precision("fp16", CUDA, "Tesla T4 (sm_75) has no bf16, so ...")))
    assert "fp16 on cpu" in (shown := capsys.readouterr().out)
    assert "Tesla T4 (sm_75) has no bf16, so ..." in shown


@pytest.mark.parametrize(
    ("architectures", "runs", "does_not_run"),
    [
        (CUDA_13, [(7, 5), (8, 0), (8, 7), (8, 9), (9, 0), (10, 3), (12, 1), (13, 0)], [(6, 1), (7, 0)]),
        (CUDA_12, [(6, 1), (7, 0), (7, 5), (8, 9), (9, 0)], [(3, 7), (10, 0), (12, 0)]),
        (["sm_90a"], [(9, 0)], [(8, 0), (10, 0)]),
    ],
)
def test_which_cards_a_wheel_has_code_for(architectures, runs, does_not_run):
    assert all(has_code(parsed(architectures), capability) for capability in runs)
    assert not any(has_code(parsed(architectures), capability) for capability in does_not_run)


@pytest.mark.parametrize(
    ("cards", "architectures", "words", "sentence"),
    [
        ([V100], CUDA_13, [], "(sm_70), which is too old: run make CUDA=cu12, or choose another GPU with"),
        ([A100, V100], CUDA_13, ["--ranks", "2"], "has no code for Tesla V100-SXM2-32GB (sm_70)"),
        ([B200], CUDA_12, [], "NVIDIA B200 (sm_100), which is too new: run make CUDA=cu13, or choose"),
        ([T4], CUDA_13, ["--set", "optim.precision=bf16"], "Tesla T4 (sm_75) has no bf16; set optim.precision=auto"),
    ],
)
@pytest.mark.parametrize("command", ["train", "eval"])
def test_a_card_that_cannot_run_is_told_before_data_are_looked_for(
    plug_in, capsys, tmp_path, tmp_path_factory, monkeypatch, cards, architectures, words, sentence, command
):
    if command == "eval":
        file = tmp_path_factory.mktemp("weights") / "net.safetensors"
        write_file(file, {name: torch.zeros(size) for name, size in shapes_of(EXPERIMENTS["demo"].model).items()})
        words = ["eval", str(file), *words]
    monkeypatch.chdir(tmp_path)
    plug_in(*cards, architectures=architectures)
    # the run is refused before it needs the demo's data, which do not exist
    assert run_command([*words, "--exp", "demo"]) == 2
    assert sentence in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_commands_for_one_card_look_at_the_first(plug_in, capsys):
    plug_in(A100, V100)
    assert run_command(["view", "--exp", "ntu60"]) == 2
    assert "has no code" not in capsys.readouterr().err
    plug_in(V100, A100)
    for words in (["view", "--exp", "ntu60"], ["report", "run"]):
        assert run_command(words) == 2
        assert "has no code for Tesla V100" in capsys.readouterr().err


def test_the_doctor_says_the_same(plug_in, monkeypatch):
    plug_in(A100, T4, V100)
    first, second, third = (finding for finding in doctor.machine() if finding.what in ("GPU 0", "GPU 1", "GPU 2"))
    assert (first.state, first.details) == ("ok", "NVIDIA A100-SXM4-80GB (sm_80), 85 GB")
    assert (second.state, second.details) == ("note", "Tesla T4 (sm_75), 16 GB, no bf16: runs compute in fp16")
    assert (third.state, third.fix) == ("bad", "run make CUDA=cu12, or choose another GPU with CUDA_VISIBLE_DEVICES")
