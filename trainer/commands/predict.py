"""`python -m trainer predict`: names the action in each window of a video.

It prints a table, and writes JSON, a picture of some windows, and a copy of the video with captions.
"""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import tyro
from rich.console import Console
from rich.markup import escape
from torch import nn

from kernels.names import SHORT, printable, safe_stem
from kernels.program import UserError
from models.networks import build_model
from models.weights.loading import load_weights
from pipelines.annotate.estimator import PoseEstimator
from pipelines.annotate.keypoints import Poses, header_of, read_poses, write_poses
from pipelines.batch import Batch
from pipelines.loader import Loader
from pipelines.packs.format import PackSettings
from pipelines.plan import plan_eval
from pipelines.progress import Progress
from pipelines.videos.container import VideoError
from pipelines.videos.decode import SLACK
from pipelines.videos.find import videos_in
from pipelines.videos.header import Header
from pipelines.videos.times import frame_times
from pipelines.videos.turn import NO_TURN, AnnotatedImage, Turn
from pipelines.videos.windows import WindowFrames, window_table, windows_of
from trainer.commands.eval import make_folder
from trainer.commands.predict_output import AnnotatedVideo, Prediction, Window, captions, show, write_json, write_sheet
from trainer.config import Experiment
from trainer.metrics import fused_scores, score_batch
from trainer.report.contact_sheet import NUM_CLIPS
from trainer.report.text import class_names_in_pictures
from trainer.runtime.cards import check_cards
from trainer.runtime.precision import Precision, precision_of
from trainer.runtime.ranks import Ranks, device_of
from trainer.runtime.wrap import compiled
from trainer.settings import SETTINGS
from trainer.snapshots.choice import CheckpointChoice, checkpoint_of, tell
from trainer.snapshots.work_dir import refuse_links_in

WIDTH = 120  # width of the table in characters when the output is not a terminal
LONGEST = 512  # maximum number of frames in a window; their scaled copies stay in memory until the window is scored


@dataclass(frozen=True, kw_only=True, slots=True)
class PredictOptions(CheckpointChoice):
    """Name the actions in videos: python -m trainer predict a.mp4 --checkpoint work_dirs/ntu60 --pose FILE"""

    videos: tyro.conf.Positional[tuple[Path, ...]]
    """Videos of any length, or folders of videos. A run's folder among them replaces --checkpoint."""
    pose: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Skeletons: an annotation pickle with entries for the videos, or the .npz of one video. Default: they are
    estimated."""
    window: int = 64
    """Number of frames that are classified together. A shorter video is one window."""
    stride: int = 32
    """Number of frames from the start of one window to the start of the next."""
    people: int = 2
    """Without --pose: the largest number of people whose skeletons are estimated."""
    out: Path | None = None
    """Folder of the results. Default: predict/ beside the checkpoint."""


def predict(options: PredictOptions) -> int:
    """Predict the actions in the videos, one video after another.

    Raises UserError if a video cannot be read or results cannot be written.
    """
    options = with_run(options)
    device, checkpoint = torch.device(device_of(options.device)), checkpoint_of(options)
    tell(checkpoint)
    experiment = checkpoint.experiment
    out = options.out or checkpoint.path.parent / "predict"
    if options.out is None:
        refuse_links_in(out)
    options = replace(options, videos=tuple(video for path in options.videos for video in videos_at(path)))
    check(options, out)
    check_cards(experiment.optim.precision, device.type, 1)
    network = build_model(experiment.model)
    load_weights(network, checkpoint.path)
    console, printer = Console(stderr=True), Console()
    if not printer.is_terminal:
        printer.width = WIDTH
    precision = precision_of(experiment.optim.precision, Ranks(0, 0, 1, device))
    say, report = partial(console.print, markup=False), out / "fallbacks_rank0.txt"
    forward = compiled(network.to(device).eval(), experiment, device, say, report)
    skeletons = Skeletons(options, experiment, console)
    make_folder(out)
    bad: dict[Path, VideoError] = {}
    for video in options.videos:
        try:
            header = header_of(str(video))
            poses = skeletons.of(video, header, out)
            predictor = Predictor(experiment, forward, precision, options.window, options.stride)
            prediction = predictor.run(video, header, poses, out, console)
            write_json(out / f"{safe_stem(video)}.json", prediction, experiment, checkpoint.path)
        except VideoError as error:
            bad[video] = error
            console.print(
                f"{printable(str(video))} has no result: {error}", markup=False, highlight=False, soft_wrap=True
            )
            continue
        except OSError as error:
            raise UserError(
                f"the results of {video} cannot be written to {out} ({error.strerror or error}); name another folder "
                "with --out"
            ) from None
        show(prediction, printer)
        stem = safe_stem(video)
        print(f"{printable(str(out))}: {stem}.mp4, {stem}.json, {stem}.png")
    if bad:
        (video, error), total = next(iter(bad.items())), len(options.videos)
        count = f"{len(bad)} of {total} videos have no result, such as " if total > 1 else ""
        raise UserError(f"{count}{video}: {error}")
    return 0


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
    """Whether this is the path of a checkpoint or of a run's folder, and not that of a video."""
    return path.suffix in (".pth", ".safetensors") or (path / SETTINGS).is_file() or any(path.glob("*.pth"))


def videos_at(path: Path) -> list[Path]:
    """The video at this path, or all videos in this folder."""
    return videos_in(path) if path.is_dir() else [path]


def check(options: PredictOptions, out: Path) -> None:
    """Raise UserError for mistakes in the options, before anything is computed."""
    if not options.videos:
        raise UserError("no video is named; write python -m trainer predict VIDEO.mp4 --checkpoint work_dirs/NAME")
    if not 1 <= options.stride <= options.window <= LONGEST:
        raise UserError(
            f"--window {options.window} --stride {options.stride}: choose them so that 1 <= stride <= window <= "
            f"{LONGEST}"
        )
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
    if options.pose is not None and options.pose.suffix == ".npz" and len(stems) > 1:
        raise UserError(
            f"{options.pose} has the skeletons of one video, but {len(stems)} videos are named: predict them in "
            "separate commands"
        )


class Skeletons:
    """Reads the skeletons of videos from the file of --pose. Without --pose, estimates them."""

    def __init__(self, options: PredictOptions, experiment: Experiment, console: Console):
        self.options, self.console, self.experiment = options, console, experiment
        self.needed = "pose" in experiment.streams
        self.estimator: PoseEstimator | None = None
        if self.needed and options.pose is None:
            joints = experiment.clip.skeleton.num_joints
            self.estimator = PoseEstimator(joints, "name a file of skeletons with --pose")

    def of(self, video: Path, header: Header, out: Path) -> Poses | None:
        """The skeletons of a video, or None if the experiment does not need them and --pose is not given.

        Estimated skeletons are written to `out` as STEM.npz (`safe_stem`).
        """
        if self.options.pose is not None:
            cache = Path(self.experiment.data.cache)
            rotation = self.experiment.data.rotation
            return self._checked(read_poses(self.options.pose, video, header, cache, rotation))
        if self.estimator is None:
            self.console.print(
                f"{printable(str(video))}: without --pose, frames are not cropped to the people before the network "
                "gets them",
                markup=False,
            )
            return None
        with Progress(self.console, "estimating poses", header.frames) as progress:
            poses = self.estimator.estimate(str(video), header, self.options.people, progress.advance)
        write_poses(out / f"{safe_stem(video)}.npz", poses)
        return poses

    def _checked(self, poses: Poses) -> Poses:
        num_joints, expected = poses.joints.shape[2], self.experiment.clip.skeleton.num_joints
        if num_joints != expected:
            raise UserError(
                f"{self.options.pose} has {num_joints} joints per person, but experiment {self.experiment.name} needs "
                f"{expected} ({self.experiment.clip.skeleton}): name a file with {expected} joints, or a checkpoint "
                f"for {num_joints}"
            )
        return poses


@dataclass(frozen=True, slots=True)
class Predictor:
    """Scores the windows of videos with a network. `window` and `stride` are in frames."""

    experiment: Experiment
    forward: nn.Module
    precision: Precision
    window: int
    stride: int

    def run(self, video: Path, header: Header, poses: Poses | None, out: Path, console: Console) -> Prediction:
        """Score all windows of a video.

        Writes an annotated copy of the video (STEM.mp4) and a picture of some windows (STEM.png) to the folder `out`.
        STEM is the name of the video without its suffix.
        """
        total, times = header.frames, frame_times(str(video))
        joints = torch.zeros(0, total, self.experiment.clip.skeleton.num_joints, 3).numpy()
        image = AnnotatedImage(*header.display)
        if poses is not None:
            joints, image = poses.joints, poses.image()
            total = joints.shape[1]
        frames = header.frames_for(image)
        size = round(frames.size[0] * frames.pixel), frames.size[1]
        turn = NO_TURN if frames.turn else Turn.of_code(header.turn)
        stem = safe_stem(video)
        spans = windows_of(total, self.window, self.stride)
        table = window_table(joints, image, spans)
        windows: list[Window] = []
        sheet_batches: list[Batch] = []
        sheet_numbers = {round(i * (len(spans) - 1) / (NUM_CLIPS - 1)) for i in range(NUM_CLIPS)}
        names = class_names_in_pictures(self.experiment.data.class_names)
        skeleton, settings = self.experiment.clip.skeleton, PackSettings.of(self.experiment.clip)
        with (
            AnnotatedVideo(out / f"{stem}.mp4", times, poses, skeleton, size, turn) as annotated,
            Progress(console, f"{escape(printable(video.name, SHORT))}: windows", len(spans)) as progress,
        ):
            frames = WindowFrames(video=str(video), table=table, windows=spans, settings=settings, each=annotated.show)
            for number, batch in enumerate(self._loader(frames).epoch(0)):
                start, end = spans[number]
                windows.append(Window(start, end, self._score(batch)))
                if number in sheet_numbers:
                    sheet_batches.append(on_cpu(batch))
                is_last = number == len(spans) - 1
                # Each frame gets the caption of the window whose middle is nearest to it.
                caption_end = total + SLACK if is_last else (start + end + sum(spans[number + 1])) // 4
                annotated.write(caption_end, captions(windows[-1], names, times))
                progress.advance()
        prediction = Prediction(video, total, times, self.experiment.data.class_names, windows)
        plan = plan_eval(table, np.array(sorted(sheet_numbers)), self.experiment.clip)
        write_sheet(out / f"{stem}.png", sheet_batches, plan, prediction)
        return prediction

    def _loader(self, frames: WindowFrames) -> Loader:
        return Loader(
            table=frames.table,
            frames=frames,
            rows=np.arange(len(frames.table)),
            config=self.experiment.clip,
            coarse_map=(0,),  # a map of one class is enough, because labels are not known and all windows have label 0
            train=False,
            batch_size=1,
            device=self.precision.device,
            dtype=self.precision.dtype,
            streams=self.experiment.streams,
        )

    @torch.no_grad()
    def _score(self, batch: Batch) -> dict[str, torch.Tensor]:
        """Probabilities [K] of each stream, on the CPU. `fused` is the mean of the RGB and pose probabilities."""
        with self.precision():
            output = self.forward(batch.rgb, batch.heatmap)
        scores = score_batch(batch, output.logits).probability
        if not all(bool(score.isfinite().all()) for score in scores.values()):
            raise UserError("the network computes no finite scores for this video: name another file with --checkpoint")
        streams = {name: scores[name] for name in ("rgb", "pose", "sum") if name in scores}
        if {"rgb", "pose"} <= streams.keys():
            streams = {"fused": fused_scores(streams["rgb"], streams["pose"], (0.5, 0.5))} | streams
        return {name: score[0].float().cpu() for name, score in streams.items()}


def on_cpu(batch: Batch) -> Batch:
    """A copy of the batch on the CPU, which is needed because the decoder reuses the batch's memory."""
    return replace(batch, **{name: tensor.to("cpu", copy=True) for name, tensor in batch.tensors().items()})
