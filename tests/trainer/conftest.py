"""Makes and packs a demo data set once for all test processes: 40 clips for training and 24 for validation.

Provides arguments of `python -m trainer` that train on these clips.

Runs in the process of the tests draw no pictures (tests/pictures.py), unless a module of tests overrides the fixture
`no_pictures`.
"""

import fcntl
import os
import pickle
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import tyro

from models.networks import build_model
from models.weights.loading import load_weights
from pipelines.demo.make import make_demo
from tests.pictures import leave_out_pictures
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

# A network with one stream and one block, which reads no videos. torch.compile traces it in a second, and the network
# of SMALL_NETS in four. With fewer than 8 channels, the AVX2 code of oneDNN writes beyond the gradients of strided 1x1
# convolutions.
POSE_NET = (
    *("model.path.base_channels=8", "model.path.blocks=(1,)", "model.path.inflate=(False,)", "model.path.strides=(1,)"),
    *("clip.pose_frames=8", "clip.heatmap_size=12", "clip.heatmap_size_val=14"),
)


def arguments_in(root: Path) -> list[str]:
    """Return arguments of `python -m trainer` for two epochs of five steps on a tiny demo.

    All data are under `root`.
    """
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
    return ["--exp", "demo", *words_of(settings)]


def words_of(settings: Iterable[str]) -> list[str]:
    return [word for setting in settings for word in ("--set", setting)]


@pytest.fixture(scope="module", autouse=True)
def no_pictures() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patches:
        leave_out_pictures(patches)
        yield


@pytest.fixture(scope="session")
def tiny(tmp_path_factory, worker_id) -> list[str]:
    """Return the arguments from `arguments_in` for a folder with all data. All test processes share this folder."""
    base = tmp_path_factory.getbasetemp()
    root: Path = (base if worker_id == "master" else base.parent) / "tiny"
    root.mkdir(exist_ok=True)
    with open(root / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        # Make the videos here: `prepare` would start processes for them, which take seconds for their imports.
        make_demo(root / "demo", experiment_of(tyro.cli(Options, args=arguments_in(root))).data.demo)
        assert dispatch(["prepare", *arguments_in(root)]) == 0
    return arguments_in(root)


@pytest.fixture(scope="session")
def tiny_pose(tiny, tmp_path_factory) -> list[str]:
    """Return arguments of `python -m trainer` that train POSE_NET on the skeletons of the tiny demo."""
    settings = (
        next(word for word in tiny if word.startswith("data.annotations=")),
        f"data.cache={tmp_path_factory.mktemp('pose_cache')}",
        *("optim.num_epochs=2", "optim.batch_size=8", "val.batch_size=8", "val.begin=1", "val.every=1"),
        *("log_every=2", "snapshot_every=2", "optim.warmup_epochs=1", *POSE_NET),
    )
    return ["--exp", "ntu60_pose", *words_of(settings)]


@pytest.fixture(scope="session")
def environment() -> dict[str, str]:
    """Return environment variables for subprocesses, which get one thread and no GPU.

    With one thread, other processes do not slow runs down or change their results. A machine may have fewer GPUs than a
    test has ranks, so only test_card.py uses GPUs.
    """
    return {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


@pytest.fixture
def build(tiny, tmp_path) -> Iterator[Callable[..., Run]]:
    """Return a function that makes a run of the tiny demo in this process.

    The function takes more settings. The initial weights are always the same.
    """
    with building(tiny, tmp_path / "journal") as make:
        yield make


@pytest.fixture
def build_pose(tiny_pose, tmp_path) -> Iterator[Callable[..., Run]]:
    """Do the same as `build` for the network of `tiny_pose`."""
    with building(tiny_pose, tmp_path / "journal") as make:
        yield make


@contextmanager
def building(words: list[str], folder: Path) -> Iterator[Callable[..., Run]]:
    """Give a function that makes runs of the trainer's arguments `words` and of more settings. Logs go to `folder`."""
    with ExitStack() as stack:

        def make(*assignments: str, on: str = "cpu") -> Run:
            experiment = experiment_of(tyro.cli(Options, args=[*words, *words_of(assignments)]))
            ranks = stack.enter_context(join(on))
            interrupt = stack.enter_context(Interrupt())
            journal, loaders = Journal(folder), build_loaders(experiment, ranks, print)
            return build_run(experiment, ranks, loaders, journal, NoWriter(), interrupt)

        yield make


@pytest.fixture(scope="session")
def trained(tiny, tmp_path_factory) -> Path:
    """Return weights after a few steps.

    The last layers are multiplied by 100, so that probabilities differ between clips. The snapshot latest.pth of these
    steps lies in the same folder.
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
    """Return the paths of the tiny demo's folder of videos and of its annotations."""
    settings = dict(word.split("=", 1) for word in tiny if "=" in word)
    return Path(settings["data.videos"]), Path(settings["data.annotations"])


@pytest.fixture(scope="session")
def annotation(paths) -> dict:
    """Return the annotation of the tiny demo's video VIDEO."""
    content = pickle.loads(paths[1].read_bytes())
    return next(clip for clip in content["annotations"] if clip["frame_dir"] == VIDEO)
