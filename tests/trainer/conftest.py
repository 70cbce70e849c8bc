"""A demo data set of 40 + 24 clips, made and packed once for all test processes, and the arguments that train on it."""

import fcntl
import os
import pickle
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import tyro

from models.networks import build_model
from models.weights.loading import load_weights
from tests.trainer.predicting import VIDEO, save_weights
from trainer.cli import dispatch
from trainer.commands.train import Options
from trainer.data import build_loaders
from trainer.journal.journal import Journal
from trainer.run import Run, build_run
from trainer.runtime.ranks import join
from trainer.runtime.signals import Interrupt
from trainer.settings import experiment_of
from trainer.snapshots.writer import NoWriter

SMALL_NETS = (
    *("model.rgb.widths=(8,16)", "model.rgb.blocks=(1,1)", "model.pose.widths=(8,16)", "model.pose.blocks=(1,1)"),
    *("clip.rgb_frames=4", "clip.pose_frames=8", "clip.rgb_size=48", "clip.rgb_size_val=56", "clip.box_pixels=56"),
    *("clip.heatmap_size=12", "clip.heatmap_size_val=14"),
)


def arguments_in(root: Path) -> list[str]:
    """Arguments of `python -m trainer` for two epochs of five steps on a tiny demo, with its data under `root`."""
    settings = (
        f"data.annotations={root}/demo/annotations.pkl",
        f"data.videos={root}/demo/videos",
        f"data.packs={root}/packs",
        f"data.cache={root}/cache",
        *("data.demo.num_train=40", "data.demo.num_val=24", "data.demo.size=(160,120)", "data.max_bad=0.05"),
        *("data.demo.num_frames=(40,90)", "data.demo.rate=30"),
        *("optim.num_epochs=2", "optim.batch_size=8", "val.batch_size=8", "val.begin=1", "val.every=1"),
        *("log_every=2", "snapshot_every=2", "optim.warmup_epochs=1", *SMALL_NETS),
    )
    return ["--exp", "demo", *(part for setting in settings for part in ("--set", setting))]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory, worker_id) -> list[str]:
    """The arguments from `arguments_in` for a folder that contains all data and that all test processes share."""
    base = tmp_path_factory.getbasetemp()
    root: Path = (base if worker_id == "master" else base.parent) / "tiny"
    root.mkdir(exist_ok=True)
    with open(root / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert dispatch(["prepare", *arguments_in(root)]) == 0
    return arguments_in(root)


@pytest.fixture(scope="session")
def environment() -> dict[str, str]:
    """Environment variables of subprocesses: one thread, so that other processes do not slow runs down or change them,
    and no GPU.

    A machine may have fewer GPUs than a test has ranks; test_card.py is for GPUs.
    """
    return {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


@pytest.fixture
def build(tiny, tmp_path) -> Iterator[Callable[..., Run]]:
    """A function that makes a run of the tiny demo in this process, with more settings and always the same weights."""
    with ExitStack() as stack:

        def make(*assignments: str, on: str = "cpu") -> Run:
            options = tyro.cli(Options, args=[*tiny, *(part for each in assignments for part in ("--set", each))])
            experiment = experiment_of(options)
            ranks = stack.enter_context(join(on))
            interrupt = stack.enter_context(Interrupt())
            journal, loaders = Journal(tmp_path / "journal"), build_loaders(experiment, ranks, print)
            return build_run(experiment, ranks, loaders, journal, NoWriter(), interrupt)

        yield make


@pytest.fixture(scope="session")
def trained(tiny, tmp_path_factory) -> Path:
    """Weights after a few steps. The last layers are multiplied by 100, so that clips differ in their probabilities.

    The snapshot latest.pth of these steps lies in the same folder.
    """
    work_dir = tmp_path_factory.mktemp("predict")
    assert dispatch([*tiny, "--work-dir", str(work_dir), "--max-steps", "4"]) == 0
    network = build_model(experiment_of(tyro.cli(Options, args=tiny)).model)
    load_weights(network, work_dir / "latest.pth")
    state = {name: tensor * (100 if "cls_head.fc" in name else 1) for name, tensor in network.state_dict().items()}
    save_weights(state, work_dir / "net.safetensors")
    return work_dir / "net.safetensors"


@pytest.fixture(scope="session")
def paths(tiny) -> tuple[Path, Path]:
    """The tiny demo's folder of videos and its annotations."""
    settings = dict(word.split("=", 1) for word in tiny if "=" in word)
    return Path(settings["data.videos"]), Path(settings["data.annotations"])


@pytest.fixture(scope="session")
def annotation(paths) -> dict:
    """The annotation of the video VIDEO of the tiny demo."""
    content = pickle.loads(paths[1].read_bytes())
    return next(clip for clip in content["annotations"] if clip["frame_dir"] == VIDEO)
