"""The batch size that fills a GPU's memory, and networks that raise an exception."""

import pytest
import torch

from benchmarks.harness import Target
from benchmarks.step import nets
from benchmarks.step.nets import filling_batch
from benchmarks.step.step import TOY, attempt


@pytest.mark.parametrize(
    ("batch", "share", "full"),
    [(12, 0.2, 48), (12, 0.5, 16), (16, 0.9, 16), (12, 0.8, 12), (12, 0.001, 192), (32, 0.1, 272)],
)
def test_the_batch_that_fills_the_card(batch, share, full):
    assert filling_batch(batch, share) == full


def test_a_network_that_raises_is_told_when_the_others_are_done(tmp_path, monkeypatch):
    monkeypatch.setattr(nets, "build_model", lambda config: fail(RuntimeError("no such kernel")))
    measured = nets.measure(Target(torch.device("cpu"), True, tmp_path))
    name, values = next(measured)
    assert name == TOY.name
    assert values == {"error": "RuntimeError: no such kernel"}
    with pytest.raises(RuntimeError, match=f"{name} raised an exception; see the record"):
        next(measured)


def fail(error):
    raise error


def test_what_is_raised_is_a_result():
    assert attempt(lambda: 3) == (3, {})
    assert attempt(lambda: fail(torch.OutOfMemoryError("too much"))) == (None, {"out_of_memory": True})
    assert attempt(lambda: fail(KeyError("x"))) == (None, {"error": "KeyError: 'x'"})
