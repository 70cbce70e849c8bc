"""On one global batch, a network with PCAN's head has the same results on one rank as on two under DDP (gloo)."""

import pytest
import torch

from models.networks import build_model
from tests.models import two_ranks
from tests.programs import run_ranks


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> tuple[dict, list[dict]]:
    """Return the results of one rank with the whole batch, and of two ranks with half of the batch each."""
    folder = tmp_path_factory.mktemp("ranks")
    for done in run_ranks(*[("-m", "tests.models.two_ranks", folder)] * 2):
        assert done.returncode == 0, done.stderr
    ranks = [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    return two_ranks.results(0, two_ranks.CLIPS, 1), ranks


def test_losses_are_the_mean_of_the_ranks(runs):
    whole, ranks = runs
    names = [name for name in whole if name.startswith("loss_")]
    assert len(names) == 10 * two_ranks.STEPS
    for name in names:
        torch.testing.assert_close((ranks[0][name] + ranks[1][name]) / 2, whole[name], rtol=1e-9, atol=1e-12)


def test_gradients_of_every_parameter_are_those_of_one_rank(runs):
    whole, ranks = runs
    names = [name for name, _ in build_model(two_ranks.CONFIG).named_parameters()]
    assert any("cl_fc" in name for name in names)
    for name in names:
        assert torch.equal(ranks[0][name], ranks[1][name])
        scale = whole[name].abs().max().item()
        torch.testing.assert_close(
            ranks[0][name], whole[name], rtol=1e-6, atol=1e-9 * scale + 1e-14, msg=lambda m, n=name: f"{n}: {m}"
        )


def test_prototypes_are_the_same_everywhere_and_some_have_moved(runs):
    whole, ranks = runs
    start = two_ranks.network().state_dict()
    names = [name for name in whole if "prototypes" in name]
    assert len(names) == 4
    for name in names:
        assert torch.equal(ranks[0][name], ranks[1][name])
        torch.testing.assert_close(ranks[0][name], whole[name], rtol=1e-12, atol=1e-14)
    moved = (whole["cls_head.contrast_rgb.prototypes"] != start["cls_head.contrast_rgb.prototypes"]).any(1)
    assert 0 < moved.sum() < len(moved)
