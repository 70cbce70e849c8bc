"""`python -m trainer doctor`: what this machine has for training, what is missing, and how to get it."""

import ctypes
import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pipelines.annotations.table import ClipTable, open_table
from pipelines.packs.format import PackSettings
from trainer.config import Experiment
from trainer.data import check_table
from trainer.runtime.wrap import has_compiler
from trainer.settings import Choice, experiment_of

State = Literal["ok", "note", "bad"]
SPACE = 40  # GB that the packs of NTU-60 take, and some
SHARED_MEMORY = 1  # GB that NCCL and worker processes ask for
EXTRAS = {"export": "onnxruntime", "pose": "rtmlib", "wandb": "wandb"}  # the packages that tell
# Older versions compute some convolutions in bf16 wrongly or slowly (docs/sources.md, "Convolutions on a GPU").
OLDEST_CUDNN = 91500


@dataclass(frozen=True, slots=True)
class Finding:
    """One line: what was looked at, how it is, what was found, what to do (empty where all is well)."""

    what: str
    state: State
    found: str
    fix: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class DoctorOptions(Choice):
    """Look over this machine: python -m trainer doctor --exp ntu60_x3d also looks for that experiment's data."""


def doctor(options: DoctorOptions, console: Console | None = None) -> int:
    """Print a table, a line for each finding; 0 where training can start, 2 where something must be mended first."""
    findings = [*machine(), *(data_of(experiment_of(options)) if options.exp else ())]
    console = console or Console()
    if not console.is_terminal:
        console.width = 150
    table = Table("what", "", "found", "way out")
    colours = {"ok": "green", "note": "yellow", "bad": "red"}
    for finding in findings:
        state = f"[{colours[finding.state]}]{finding.state}[/]"
        table.add_row(finding.what, state, escape(finding.found), escape(finding.fix))
    console.print(table)
    bad = dict.fromkeys(finding.what for finding in findings if finding.state == "bad")
    console.print(f"to be mended first: {', '.join(bad)}" if bad else "training can start", highlight=False)
    return 2 if bad else 0


def machine() -> Iterator[Finding]:
    """Everything that does not depend on an experiment."""
    yield from gpus()
    yield torch_version()
    yield dali()
    yield compiler()
    yield apex()
    yield extras()
    yield space("disk", Path.cwd(), SPACE, "packs of NTU-60 take about 35 GB: set data.packs to another disk")
    yield space("/dev/shm", Path("/dev/shm"), SHARED_MEMORY, "in a container: --shm-size 8g")
    cores = len(os.sched_getaffinity(0))
    yield Finding("CPU", "ok", f"{cores} cores, {_memory_gb():.0f} GB of memory")


def gpus() -> Iterator[Finding]:
    """The cards and what stands beside them; a machine without one is a note: everything runs on its CPU."""
    if not torch.cuda.is_available():
        command = shutil.which("nvidia-smi")
        fix = "an NVIDIA GPU and its driver"
        if command and _smi():
            fix = "the driver sees a card, torch does not: install torch for CUDA"
        yield Finding("GPU", "note", "none: training runs on the CPU, slowly", fix)
        return
    for index in range(torch.cuda.device_count()):
        card = torch.cuda.get_device_properties(index)
        old = card.major < 8
        fix = "no bf16: set optim.precision=fp16" if old else ""
        size = f"{card.total_memory / 1e9:.0f} GB, sm_{card.major}{card.minor}"
        yield Finding(f"GPU {index}", "note" if old else "ok", f"{card.name}, {size}", fix)
    yield Finding("driver", "ok", _smi() or "unknown")
    yield video_engine()


def video_engine(library: str = "libnvcuvid.so.1") -> Finding:
    """Packs need none; without the driver's library DALI decodes no video on the card."""
    try:
        ctypes.CDLL(library)
    except OSError:
        fix = "in a container: NVIDIA_DRIVER_CAPABILITIES=all"
        return Finding("NVDEC", "note", f"no {library}: no data.source=video", fix)
    return Finding("NVDEC", "ok", f"{library} found")


def torch_version() -> Finding:
    """Its age is looked at before any command (kernels/program.py); here what came with it."""
    cudnn = torch.backends.cudnn.version()
    found = f"torch {torch.__version__}, CUDA {torch.version.cuda}, cuDNN {cudnn}"
    if cudnn is not None and cudnn < OLDEST_CUDNN:
        return Finding("torch", "bad", found, "cuDNN 9.15 or newer: pip install -U nvidia-cudnn-cu13")
    return Finding("torch", "ok", found)


def dali() -> Finding:
    """It is there: without it no command starts."""
    names = ("nvidia-dali-cuda130", "nvidia-dali-cuda120")
    version = next((_version(name) for name in names if _version(name)), "of unknown version")
    where = "JPEG and video decoded on the card" if torch.cuda.is_available() else "JPEG decoded on the CPU"
    return Finding("DALI", "ok", f"{version}, {where}")


def compiler() -> Finding:
    triton = _version("triton") or "none"
    if has_compiler():
        return Finding("torch.compile", "ok", f"C compiler found, triton {triton}")
    return Finding("torch.compile", "note", "no C compiler: runs uncompiled, slower", "install gcc")


def apex() -> Finding:
    if importlib.util.find_spec("amp_C") is not None:
        return Finding("apex", "ok", "NVIDIA's, with its extension: --set optim.impl=apex")
    if importlib.util.find_spec("apex") is not None:
        return Finding("apex", "note", "one without amp_C (PyPI's is something else)", "pip uninstall apex; see README")
    return Finding("apex", "ok", "not there, and not needed")


def extras() -> Finding:
    """What only some commands need: export to ONNX, skeletons of videos that have none, curves on a server."""
    missing = [name for name, package in EXTRAS.items() if importlib.util.find_spec(package) is None]
    there = ", ".join(name for name in EXTRAS if name not in missing)
    fix = f"if wanted: pip install -e '.[{','.join(missing)}]'" if missing else ""
    return Finding("extras", "ok", f"{there or 'none'} installed", fix)


def space(what: str, path: Path, needed: float, fix: str) -> Finding:
    try:
        free = shutil.disk_usage(path).free / 1e9
    except OSError as error:
        return Finding(what, "note", f"{path} cannot be looked at ({error.strerror})")
    return Finding(what, "ok" if free >= needed else "note", f"{free:.0f} GB free", "" if free >= needed else fix)


def data_of(experiment: Experiment) -> Iterator[Finding]:
    """Annotations, videos and packs of an experiment; the demo makes its own."""
    data = experiment.data
    if data.demo is not None:
        yield Finding("data", "ok", "the demo makes its own")
        return
    files = [Path(file) for file in (data.annotations, data.val_annotations) if file is not None]
    tables = {file: annotations_of(experiment, file) for file in files}
    yield from (found for found, _ in tables.values())
    folder = Path(data.videos)
    there = folder.is_dir() and any(folder.iterdir())
    fix = "" if there else "put the videos there, or --set data.videos=...; see 'Data preparation' in docs/"
    yield Finding("videos", "ok" if there else "bad", f"{folder}{'' if there else ' is empty or not there'}", fix)
    yield from (packs_of(experiment, file, table) for file, (_, table) in tables.items() if table is not None)


def annotations_of(experiment: Experiment, file: Path) -> tuple[Finding, ClipTable | None]:
    """Whether a pickle is there, can be read, and fits the experiment; its table if so."""
    if not file.is_file():
        fix = "get the published skeleton pickle, or --set data.annotations=..."
        return Finding("annotations", "bad", f"{file} is not there", fix), None
    try:
        table = open_table(file, Path(experiment.data.cache))
        check_table(experiment, file, table)
    except ValueError as error:
        return Finding("annotations", "bad", str(error), f"python -m pipelines.verify {file} says more"), None
    return Finding("annotations", "ok", str(file)), table


def packs_of(experiment: Experiment, annotations: Path, table: ClipTable) -> Finding:
    folder = PackSettings.of(experiment.clip).folder(Path(experiment.data.packs), table)
    if (folder / "manifest.jsonl").exists():
        return Finding("packs", "ok", str(folder))
    fix = f"training makes it, or python -m pipelines.prepare --exp {experiment.name}"
    return Finding("packs", "note", f"none for {annotations} yet", fix)


def _smi() -> str:
    """The driver's version, or nothing."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "--id=0"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _memory_gb() -> float:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return ""
