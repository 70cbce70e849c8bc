"""A default run needs only the heatmap kernel, which compiles for every card and fits into the card's shared memory."""

import json
import os
from dataclasses import replace

import pytest

from benchmarks.kernels.launches import HeatmapCall, calls_of
from benchmarks.kernels.launches.seen import Seen
from benchmarks.synthetic import TOY
from tests import programs
from tests.planner.cards import CARDS
from trainer.experiments import DEMO, MA52_POSE_LIMB, MA52_RUN, NTU60, NTU60_POSE_LIMB, NTU60_X3D

PROGRAM = """
import json, sys
import torch
from benchmarks.kernels.aot import compiling, resources
from benchmarks.kernels.stand_in import stand_in
from tests.kernels.test_aot_cards import calls
from tests.planner.cards import CARDS

made = {}
for name, card in CARDS.items():
    stand_in(card.arch)
    with compiling() as kernels:
        for call in calls(every=sys.argv[1] == "all"):
            call.run(torch.bfloat16 if card.has_bf16 else torch.float16)
    made[name] = [resources(kernel) for kernel in kernels]
print(json.dumps(made))
"""


def calls(every: bool) -> list[HeatmapCall]:
    """Return the heatmap calls of two experiments in training or, with `every`, of seven in training and validation."""
    with_limbs = replace(DEMO, clip=replace(DEMO.clip, limbs=True))
    others = (DEMO, MA52_RUN, NTU60, NTU60_POSE_LIMB, MA52_POSE_LIMB) if every else ()
    made = []
    for experiment in (NTU60_X3D, with_limbs, *others):
        for train in (True, False) if every else (True,):
            sized = replace(experiment, clip=replace(experiment.clip, heatmap_size=experiment.clip.sizes(train)[1]))
            made += HeatmapCall.find(Seen(experiment=sized, calls={}, clips=1, train=train))
    return made


def test_a_default_run_makes_no_other_call():
    for train in (True, False):
        assert {call.kernel for call in calls_of(TOY, train, TOY.fused)} == {"heatmap"}


@pytest.mark.parametrize("which", ["two", pytest.param("all", marks=pytest.mark.soak)])
def test_the_heatmap_kernel_compiles_for_every_card(which, tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = programs.run(
        "-c", PROGRAM, which, environment=environment | {"TRITON_CACHE_DIR": str(tmp_path)}, timeout=900
    )
    assert done.returncode == 0, done.stderr
    made = json.loads(done.stdout)
    assert made.keys() == CARDS.keys()
    for name, kernels in made.items():
        assert len(kernels) == len(calls(which == "all"))
        for kernel in kernels:
            assert kernel["shared_bytes"] <= CARDS[name].shared_memory_per_block_optin
            assert kernel["spilled_bytes"] == kernel["stack_bytes"] == 0
