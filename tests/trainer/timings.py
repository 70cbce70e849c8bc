"""Timings of the first look on two ranks that would choose differently on their own."""

from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import torch

from pipelines.trial import LOADS
from trainer.runtime import first_look
from trainer.runtime.decisions import Decisions
from trainer.runtime.forward import Way
from trainer.runtime.ranks import Ranks


def agree_in_the_first_look(ranks: Ranks) -> None:
    """Check that both of two gloo ranks choose what rank 0 chooses, and the slower way if a rank cannot use another."""
    reason = first_look.of_any_rank(ranks, "no compiler" if ranks.rank else None)
    assert reason == ("no compiler" if ranks.rank else "on another rank")
    assert first_look.of_any_rank(ranks, None) is None

    run: Any = SimpleNamespace(
        ranks=replace(ranks, device=torch.device("cuda", 0)),
        train_loader=None,
        experiment=SimpleNamespace(cudnn_benchmark=None),
        decisions=Decisions(),
        forward=SimpleNamespace(way=Way.COMPILED),
    )
    first_look.decoding_alone = lambda loader: nullcontext(lambda load: None)
    first_look.fastest = lambda *_: (LOADS[1], 1.5)
    assert first_look.fastest_load(run, float) == LOADS[1]
    for of_rank_0, gains, expected in ((True, (1.5, 1.0), True), (False, (1.0, 1.5), False), (True, (1.5, 0.0), False)):
        # a gain of 0 stands for a rank whose memory does not suffice
        first_look.fastest = lambda *_, mine=(of_rank_0 is not bool(ranks.rank), gains[ranks.rank]): mine
        first_look.choose_benchmark(run, None, float)  # pyright: ignore[reportArgumentType]
        assert torch.backends.cudnn.benchmark is expected
