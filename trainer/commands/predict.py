"""`python -m trainer predict`: names the action in each window of a video, or of a live source.

It prints a table, and writes JSON, a picture of some windows, and a copy of the video with skeletons and labels.
"""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated

import torch
import tyro
from rich.console import Console

from kernels.names import printable, safe_stem
from kernels.program import UserError
from models.networks import build_model
from models.weights.loading import load_weights
from pipelines.annotate.estimator import DEFAULT, EstimatorOptions
from pipelines.annotate.keypoints import header_of
from pipelines.videos.container import VideoError
from pipelines.videos.find import videos_in
from pipelines.videos.header import Header
from pipelines.videos.live import LiveSource
from trainer.commands.eval import make_folder
from trainer.predict.file import FilePredictor
from trainer.predict.live import LivePredictor
from trainer.predict.result import show, write_json
from trainer.predict.scorer import Scorer
from trainer.predict.skeletons import PICKLES, Skeletons
from trainer.predict.window_choice import choose_windows
from trainer.runtime.cards import check_cards
from trainer.runtime.faults import NO_MEMORY, enough_memory
from trainer.runtime.precision import precision_of
from trainer.runtime.ranks import Ranks, device_of
from trainer.runtime.wrap import compiled
from trainer.settings import SETTINGS
from trainer.snapshots.choice import Checkpoint, CheckpointChoice, checkpoint_of, tell
from trainer.snapshots.work_dir import refuse_links_in

SEVERAL = (*PICKLES, ".json")  # extensions of files that can contain the skeletons of several videos
WIDTH = 120  # width of the table in characters when the output is not a terminal


@dataclass(frozen=True, kw_only=True, slots=True)
class PredictOptions(CheckpointChoice):
    """Name the actions in videos: python -m trainer predict a.mp4 --checkpoint work_dirs/ntu60 --pose FILE"""

    # the help leaves these three options out, because they are seldom useful here
    config: tyro.conf.Suppress[Path | None] = None
    coarse_map: tyro.conf.Suppress[str | None] = None
    ranks: tyro.conf.Suppress[int | None] = None
    videos: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(help_behavior_hint="")]
    """Videos, folders of videos, and instead of --checkpoint the folder of a run."""
    live: Annotated[str | None, tyro.conf.arg(metavar="URL", help_behavior_hint="")] = None
    """Predict a stream, a camera (/dev/video0), or a file at its own speed."""
    max_delay: Annotated[float, tyro.conf.arg(metavar="S")] = 1.0
    """With --live: drop frames that have waited for more than S seconds."""
    pose: Annotated[Path | None, tyro.conf.arg(metavar="PATH", aliases=["--poses"], help_behavior_hint="")] = None
    """Skeletons: a pickle, or a file or folder as for annotate. Default: estimated."""
    window: Annotated[int | None, tyro.conf.arg(metavar="N", help_behavior_hint="")] = None
    """Frames of a window. Default: as many as a training clip has."""
    stride: Annotated[int | None, tyro.conf.arg(metavar="N", help_behavior_hint="")] = None
    """Frames between the starts of two windows. Default: half a window."""
    per_person: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Label each person separately."""
    explain: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Show where the network looked (Grad-CAM)."""
    estimation: tyro.conf.OmitArgPrefixes[EstimatorOptions] = DEFAULT
    people: Annotated[int, tyro.conf.arg(metavar="N")] = 2
    """Maximum number of people, estimated or read from files."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="DIR", help_behavior_hint="")] = None
    """Folder of the results. Default: predict/ beside the checkpoint."""


@enough_memory(NO_MEMORY)
def predict(options: PredictOptions) -> int:
    """Predict the actions in the videos, one video after another.

    Raises UserError if a video cannot be read or results cannot be written.
    """
    options = with_run(options)
    device, checkpoint = torch.device(device_of(options.device)), checkpoint_of(options)
    tell(checkpoint)
    out = options.out or checkpoint.path.parent / "predict"
    if options.out is None:
        refuse_links_in(out)
    options = replace(options, videos=tuple(video for path in options.videos for video in videos_at(path)))
    if options.live is None:
        check(options, out)
    else:
        check_live(options)
    console, printer = Console(stderr=True), Console()
    if not printer.is_terminal:
        printer.width = WIDTH
    choice = choose_windows(options.window, options.stride, checkpoint.path)
    if choice.reason:
        console.print(choice.reason, markup=False, highlight=False, soft_wrap=True)
    scorer = scorer_of(checkpoint, device, options.explain, out, console)
    skeletons = Skeletons(options.pose, options.people, checkpoint.experiment, console, options.estimation)
    make_folder(out)
    if options.live is not None:
        return predict_live(
            options.live,
            options,
            checkpoint,
            LivePredictor(scorer, choice, skeletons, console, options.per_person),
            out,
        )
    predictor = FilePredictor(scorer, choice, options.per_person, out, console)
    bad: dict[Path, VideoError] = {}
    headers = headers_of(options.videos, bad)
    skeletons.survey(headers)
    for video, header in headers.items():
        try:
            prediction = predictor.run(video, header, skeletons.of(video, header, out))
            write_json(out / f"{safe_stem(video)}.json", prediction, checkpoint.experiment, checkpoint.path)
        except VideoError as error:
            bad[video] = error
            continue
        except OSError as error:
            raise not_written(video, out, error) from None
        show(prediction, printer)
        stem = safe_stem(video)
        print(f"{printable(str(out))}: {stem}.mp4, {stem}.json, {stem}.png")
    complain(bad, len(options.videos), console)
    return 0


def predict_live(
    address: str, options: PredictOptions, checkpoint: Checkpoint, predictor: LivePredictor, out: Path
) -> int:
    """Predict a live source until it ends. Raises UserError if it cannot be read or results cannot be written."""
    name = address.rpartition("/")[2].partition("?")[0] or "live"
    stem = f"{safe_stem(Path(name))}_live"
    try:
        prediction = predictor.run(LiveSource(address, options.max_delay), out / f"{stem}.mp4")
        write_json(out / f"{stem}.json", prediction, checkpoint.experiment, checkpoint.path)
    except VideoError as error:
        raise UserError(f"{address}: {error}") from None
    except OSError as error:
        raise not_written(address, out, error) from None
    print(f"{printable(str(out))}: {stem}.mp4, {stem}.json")
    return 0


def not_written(video: Path | str, out: Path, error: OSError) -> UserError:
    """The UserError that says why the results of a video cannot be written."""
    return UserError(
        f"the results of {video} cannot be written to {out} ({error.strerror or error}); name another folder with --out"
    )


def check_live(options: PredictOptions) -> None:
    """Raise UserError if an option cannot be used with a live source."""
    if options.videos:
        raise UserError(
            f"--live {options.live} and the video {options.videos[0]} are both named: leave one of them out"
        )
    if options.pose is not None:
        raise UserError("the skeletons of a live source are estimated: leave out --pose")
    if not options.max_delay > 0:
        raise UserError(f"--max-delay {options.max_delay}: choose a number of seconds above 0")


def scorer_of(checkpoint: Checkpoint, device: torch.device, explains: bool, out: Path, console: Console) -> Scorer:
    """The network of a checkpoint, ready to score windows.

    `out`: the folder for a report if the network cannot be compiled.
    """
    experiment = checkpoint.experiment
    check_cards(experiment.optim.precision, device.type, 1)
    network = build_model(experiment.model)
    load_weights(network, checkpoint.path)
    network = network.to(device).eval()
    say, report = partial(console.print, markup=False), out / "fallbacks_rank0.txt"
    forward = compiled(network, experiment, device, say, report)
    precision = precision_of(experiment.optim.precision, Ranks(0, 0, 1, device))
    return Scorer(experiment, network, forward, precision, explains)


def headers_of(videos: tuple[Path, ...], bad: dict[Path, VideoError]) -> dict[Path, Header]:
    """The headers of all videos that can be read. For each unreadable video, the reason is added to `bad`."""
    headers = {}
    for video in videos:
        try:
            headers[video] = header_of(str(video))
        except VideoError as error:
            bad[video] = error
    return headers


def complain(bad: dict[Path, VideoError], total: int, console: Console) -> None:
    """Say which of `total` videos have no result, and why. Raises UserError if there are such videos."""
    for video, error in bad.items():
        console.print(f"{printable(str(video))} has no result: {error}", markup=False, highlight=False, soft_wrap=True)
    if bad:
        video, error = next(iter(bad.items()))
        count = f"{len(bad)} of {total} videos have no result, such as " if total > 1 else ""
        raise UserError(f"{count}{video}: {error}")


def with_run(options: PredictOptions) -> PredictOptions:
    """If a run's folder or a snapshot is among `videos`, make it the checkpoint.

    Raises UserError if several checkpoints are named.
    """
    runs = [path for path in options.videos if is_checkpoint(path)]
    if not runs:
        return options
    named = [*runs, *([options.checkpoint] if options.checkpoint else [])]
    if len(named) > 1:
        raise UserError(f"{named[0]} and {named[1]} are both named as the checkpoint: leave one of them out")
    videos = tuple(path for path in options.videos if path not in runs)
    return replace(options, videos=videos, checkpoint=runs[0])


def is_checkpoint(path: Path) -> bool:
    """Whether this is the path of a checkpoint or of a run's folder, and not the path of a video."""
    return path.suffix in (".pth", ".safetensors") or (path / SETTINGS).is_file() or any(path.glob("*.pth"))


def videos_at(path: Path) -> list[Path]:
    """The video at this path, or all videos in this folder."""
    return videos_in(path) if path.is_dir() else [path]


def check(options: PredictOptions, out: Path) -> None:
    """Raise UserError for mistakes in the options, before anything is computed."""
    if not options.videos:
        raise UserError("no video is named; write python -m trainer predict VIDEO.mp4 --checkpoint work_dirs/NAME")
    if options.people < 1:
        raise UserError(f"--people {options.people}: the number must be 1 or more")
    stems = [safe_stem(video) for video in options.videos]
    for video in options.videos:
        if not video.is_file():
            raise UserError(f"there is no video {video}; check its path")
        if stems.count(safe_stem(video)) > 1:
            raise UserError(
                f"two videos have the name {video.stem}: predict them in separate commands, each with its own --out"
            )
        if (out / f"{safe_stem(video)}.mp4").resolve() == video.resolve():
            raise UserError(f"the result would replace {video}; name another folder with --out")
    of_one_video = options.pose is not None and options.pose.is_file() and options.pose.suffix not in SEVERAL
    if of_one_video and len(stems) > 1:
        raise UserError(
            f"{options.pose} has the skeletons of one video, but {len(stems)} videos are named: predict them in "
            "separate commands"
        )
