"""`python -m trainer doctor`: says what this machine has for training, what is missing, and how to get it."""

import ctypes
import importlib.util
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import av
import torch
from rich.console import Console
from rich.markup import escape

from kernels.compiler import why_no_compiler
from kernels.driver import Driver, find_driver, newest_wheels, why_no_gpu
from pipelines.annotations.table import ClipTable, open_table
from trainer.commands.tables import new_table, print_table
from trainer.config import Experiment
from trainer.data import check_table, num_packed
from trainer.journal.provenance import version_of
from trainer.runtime.cards import card_name, computes_in_bf16, why_no_code
from trainer.runtime.ranks import sees_gpu
from trainer.settings import Choice, experiment_of

State = Literal["ok", "note", "bad"]
SPACE = 40  # GB of free disk space: the packs of NTU-60 take about 35 GB
SHARED_MEMORY = 1  # GB of free shared memory, which NCCL and worker processes need
# for each optional extra of Duet, one of its packages
EXTRAS = {"export": "onnxscript", "pose": "rtmlib", "wandb": "wandb"}
CORES = 4  # number of CPU cores that one GPU needs: they plan, read and decode its batches
# The published names of annotation files and of videos. The key is the first word of an experiment's name.
PUBLISHED_DATA = {
    "ntu60": ("ntu60_2d.pkl of MMAction2 (pyskl: ntu60_hrnet.pkl)", "NTU RGB+D 60"),
    "ntu120": ("ntu120_2d.pkl of MMAction2 (pyskl: ntu120_hrnet.pkl)", "NTU RGB+D 120"),
    "ma52": ("MA-52_openpose_28kp of PCAN's authors", "MA-52"),
}
# Published files of weights with which these experiments can start. docs/weights.md describes them.
NTU60_STREAMS = "rgbpose_conv3d_init_20230228-09b7684b.pth of MMAction2"
X3D_M = "x3d_m_16x5x1_facebook-kinetics400-rgb_20201027-3f42382a.pth of MMAction2"
PUBLISHED_WEIGHTS = {
    "ma52": "rgbpose_conv3d_init.pth of PCAN",
    "ma52_pcan": "rgbpose_conv3d_init.pth of PCAN",
    "ma52_best": "rgbpose_conv3d_init.pth of PCAN",
    "ntu60": NTU60_STREAMS,
    "ntu60_rgbpose": NTU60_STREAMS,
    "ntu120": NTU60_STREAMS,
    "ntu120_rgbpose": NTU60_STREAMS,
    "ntu60_rgb": "resnet50-0676ba61.pth of torchvision",
    "ntu120_rgb": "rgb_only_20230228-576b9f86.pth of MMAction2",
    "ntu120_pose": "pose_only_20230228-fa40054e.pth of MMAction2",
    "ntu60_x3d": X3D_M,
    "ntu60_x3d_tuned": X3D_M,
    "ntu120_x3d": X3D_M,
    "custom": X3D_M,
}
SAFE_FFMPEG = (8, 1, 2)
DALI = {"nvidia-dali-cuda130": 13, "nvidia-dali-cuda120": 12}  # the major version of CUDA that each package needs


@dataclass(frozen=True, slots=True)
class Finding:
    """One row of the doctor's table. `fix` says what the user can do about it, and is empty if all is well."""

    what: str
    state: State
    details: str
    fix: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class DoctorOptions(Choice):
    """Check whether this machine and the data of an experiment are ready: python -m trainer doctor --exp ntu60_x3d

    Without --exp, only the machine is checked.
    """


def doctor(options: DoctorOptions, console: Console | None = None) -> int:
    """Print a table with one line for each finding. Returns 0 if training can start, 2 if something must be fixed."""
    findings = [*machine(options.device), *(check_data(experiment_of(options)) if options.named else ())]
    console = console or Console()
    table = new_table("what", "", "details", "what to do")
    colours = {"ok": "green", "note": "yellow", "bad": "red"}
    for finding in findings:
        state = f"[{colours[finding.state]}]{finding.state}[/]"
        table.add_row(finding.what, state, escape(finding.details), escape(finding.fix))
    print_table(table, console)
    bad = dict.fromkeys(finding.what for finding in findings if finding.state == "bad")
    console.print(f"fix these first: {', '.join(bad)}" if bad else "training can start", highlight=False)
    return 2 if bad else 0


def machine(device: str = "auto") -> Iterator[Finding]:
    """Check the machine itself: GPUs, packages, disk space and CPU. These findings do not depend on an experiment."""
    driver = find_driver()
    yield from gpus(device, driver)
    yield torch_version()
    yield dali(driver, sees_gpu())
    yield ffmpeg(getattr(av, "ffmpeg_version_info", ""))
    yield compiler(sees_gpu())
    yield apex()
    yield extras()
    yield space(
        "disk", Path.cwd(), SPACE, "packs of NTU-60 take about 35 GB: set data.packs to a folder on another disk"
    )
    yield space("/dev/shm", Path("/dev/shm"), SHARED_MEMORY, "start the container with --shm-size 8g")
    yield cpu(len(os.sched_getaffinity(0)), torch.cuda.device_count())


def gpus(device: str, driver: Driver | None) -> Iterator[Finding]:
    """Check the GPUs, their driver and video engine.

    A missing GPU is only a `note`, because everything also runs on a CPU. A GPU that torch cannot use is `bad`, because
    runs then start only with --device cpu.
    """
    if not sees_gpu():
        reason = None if device == "cpu" else why_no_gpu(torch.__version__, torch.version.cuda)
        if reason is not None:
            yield Finding("GPU", "bad", *reason)
            return
        fix = "needs an NVIDIA GPU and its driver"
        if driver is not None:
            fix = "leave out --device cpu, and do not set CUDA_VISIBLE_DEVICES"
        yield Finding("GPU", "note", "none: training runs on the CPU, slowly", fix)
        return
    for index in range(torch.cuda.device_count()):
        card = torch.cuda.get_device_properties(index)
        reason, bf16 = why_no_code(index), computes_in_bf16(index)
        if reason is not None:
            yield Finding(f"GPU {index}", "bad", *reason)
            continue
        note = "" if bf16 else ", no bf16: runs compute in fp16"
        details = f"{card_name(index)}, {card.total_memory / 1e9:.0f} GB{note}"
        yield Finding(f"GPU {index}", "ok" if bf16 else "note", details)
    yield Finding("driver", "ok", str(driver or "unknown"))
    yield video_engine()


def video_engine(library: str = "libnvcuvid.so.1") -> Finding:
    """Check for the driver's video library, which DALI needs to decode videos on the GPU, but not to read packs."""
    try:
        ctypes.CDLL(library)
    except OSError:
        fix = "start the container with NVIDIA_DRIVER_CAPABILITIES=all"
        return Finding("NVDEC", "note", f"no {library}: data.source=video does not work", fix)
    return Finding("NVDEC", "ok", f"{library} found")


def torch_version() -> Finding:
    """Report the versions of torch, CUDA and cuDNN. If torch is too old, no command starts (kernels/program.py)."""
    details = f"torch {torch.__version__}, CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}"
    return Finding("torch", "ok", details)


def dali(driver: Driver | None, on_gpu: bool) -> Finding:
    """Report DALI's version and whether it decodes on the GPU, and check that the driver is new enough for DALI.

    There is no check whether DALI is installed, because no command, including this one, starts without it.
    """
    name = next((name for name in DALI if version_of(name)), "")
    version = version_of(name) or "of unknown version"
    if on_gpu and driver is not None and DALI.get(name, 0) > driver.cuda_major:
        fix = f"run make CUDA={newest_wheels(driver)} in the checkout"
        return Finding("DALI", "bad", f"{version} for CUDA {DALI[name]}, but this machine has {driver}", fix)
    return Finding("DALI", "ok", f"{version}, decodes {'JPEG and video on the GPU' if on_gpu else 'JPEG on the CPU'}")


def ffmpeg(version: str) -> Finding:
    """Report the version of PyAV's FFmpeg, and whether it has known vulnerabilities that a video can exploit."""
    numbers = re.match(r"n?(\d+)\.(\d+)(?:\.(\d+))?", version)
    if numbers is not None and tuple(int(number or 0) for number in numbers.groups()) >= SAFE_FFMPEG:
        return Finding("FFmpeg", "ok", f"{version}, decodes video on the CPU")
    details = f"{version or 'of unknown version'}, a video can exploit it (CVE-2026-8461, CVE-2026-40962)"
    return Finding("FFmpeg", "note", details, "pip install 'av>=18.1,<19', or decode only videos that you trust")


def cpu(cores: int, num_gpus: int) -> Finding:
    """Check whether this process may use enough CPU cores to keep its GPUs busy."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    details = f"{cores} cores, {memory / 1e9:.0f} GB of memory"
    if cores < CORES * num_gpus:
        fix = f"use {CORES} cores for each GPU (SLURM: --cpus-per-task, and srun -c)"
        return Finding("CPU", "note", f"{details}, too few for {num_gpus} GPUs", fix)
    return Finding("CPU", "ok", details)


def compiler(on_gpu: bool) -> Finding:
    """Compile a small extension module, to check whether Triton and torch.compile can compile their code."""
    reason = why_no_compiler("C" if on_gpu else "C++")
    if reason is not None:
        problem, way_out = reason
        return Finding("torch.compile", "note", f"{problem}, so networks run uncompiled and slower", way_out)
    return Finding("torch.compile", "ok", f"compiler and Python.h found, triton {version_of('triton') or 'none'}")


def apex() -> Finding:
    if importlib.util.find_spec("amp_C") is not None:
        return Finding("apex", "ok", "NVIDIA's apex, with amp_C: --set optim.impl=apex uses it")
    if importlib.util.find_spec("apex") is not None:
        details = "installed without amp_C (PyPI's apex is a different package)"
        return Finding("apex", "note", details, "pip uninstall apex; see README")
    return Finding("apex", "ok", "not installed, and not needed")


def extras() -> Finding:
    """List the optional packages that are installed: for ONNX export, pose estimation and Weights & Biases."""
    missing = [name for name, package in EXTRAS.items() if importlib.util.find_spec(package) is None]
    installed = ", ".join(name for name in EXTRAS if name not in missing)
    fix = f"optional: pip install -e '.[{','.join(missing)}]'" if missing else ""
    return Finding("extras", "ok", f"{installed or 'none'} installed", fix)


def space(what: str, path: Path, needed: float, fix: str) -> Finding:
    try:
        free = shutil.disk_usage(path).free / 1e9
    except OSError as error:
        return Finding(what, "note", f"{path} cannot be checked ({error.strerror})")
    return Finding(what, "ok" if free >= needed else "note", f"{free:.0f} GB free", "" if free >= needed else fix)


def check_data(experiment: Experiment) -> Iterator[Finding]:
    """Check annotations, videos and packs of an experiment, and name published weights from which training can start.

    The demo always passes this check, because it makes its own data.
    """
    data = experiment.data
    if data.demo is not None:
        yield Finding("data", "ok", "the demo makes its own data")
        return
    files = [Path(file) for file in (data.annotations, data.val_annotations) if file is not None]
    tables = {file: check_annotations(experiment, file) for file in files}
    yield from (finding for finding, _ in tables.values())
    if experiment.name in PUBLISHED_WEIGHTS:
        details = f"none needed; {experiment.name} can start from {PUBLISHED_WEIGHTS[experiment.name]}"
        yield Finding("weights", "ok", details, "optional: --init FILE, see docs/weights.md")
    if "rgb" not in experiment.streams:
        yield Finding("videos", "ok", f"not needed: the network of {experiment.name} reads only skeletons")
        return
    folder = Path(data.videos)
    has_videos = folder.is_dir() and any(folder.iterdir())
    videos = f"the videos of {published_data(experiment)[1]}"
    fix = "" if has_videos else f"put {videos} there, or --set data.videos=... (docs/data.md)"
    details = f"{folder}{'' if has_videos else ' is empty or does not exist'}"
    yield Finding("videos", "ok" if has_videos else "bad", details, fix)
    yield from (check_packs(experiment, file, table) for file, (_, table) in tables.items() if table is not None)


def check_annotations(experiment: Experiment, file: Path) -> tuple[Finding, ClipTable | None]:
    """Check that an annotation file exists, can be read, and fits the experiment.

    Returns the finding, and the file's table (None if something is wrong).
    """
    if not file.is_file():
        setting = "annotations" if str(file) == experiment.data.annotations else "val_annotations"
        fix = f"put {published_data(experiment)[0]} there, or --set data.{setting}=... (docs/data.md)"
        return Finding("annotations", "bad", f"{file} does not exist", fix), None
    try:
        table = open_table(file, Path(experiment.data.cache))
        check_table(experiment, file, table)
    except ValueError as error:
        return Finding("annotations", "bad", str(error), f"for details: python -m pipelines.verify {file}"), None
    return Finding("annotations", "ok", str(file)), table


def published_data(experiment: Experiment) -> tuple[str, str]:
    """The published names of an experiment's annotation files and videos."""
    return PUBLISHED_DATA.get(experiment.name.partition("_")[0], ("your annotation file", "your data set"))


def check_packs(experiment: Experiment, annotations: Path, table: ClipTable) -> Finding:
    """Check whether the packs for the clips of an annotation file exist already."""
    found = num_packed(experiment, table)
    if found:
        return Finding("packs", "ok", f"{found} of {len(table)} clips are in {experiment.data.packs}")
    fix = "training makes them, or run python -m trainer prepare with the same options"
    return Finding("packs", "note", f"none for the clips of {annotations} yet", fix)
