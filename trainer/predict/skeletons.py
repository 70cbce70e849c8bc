"""Finds the skeletons of videos: in files of any format that `annotate` reads, or by estimating them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import av
from rich.console import Console

from kernels.names import printable, safe_stem
from kernels.program import UserError
from pipelines.annotate.estimator import DEFAULT, EstimatorOptions, PoseEstimator
from pipelines.annotate.folder import PoseFolder
from pipelines.annotate.keypoints import Poses, check_place, read_poses, write_poses
from pipelines.annotate.make import with_square_pixels
from pipelines.annotate.tracking import Person
from pipelines.packs.format import original_name
from pipelines.progress import Progress
from pipelines.videos.header import Header
from trainer.config import Experiment

PICKLES = (".pkl", ".pickle")


@dataclass
class Skeletons:
    """The skeletons of videos for an experiment. `survey` must be called once, before `of`.

    file: a file or a folder of skeletons, or None to estimate them if the experiment needs them. max_people: the
    maximum number of people in a video, if their skeletons are estimated or come from files of a pose estimator.
    """

    file: Path | None
    max_people: int
    experiment: Experiment
    console: Console
    estimation: EstimatorOptions = DEFAULT
    files: PoseFolder | None = None
    estimator: PoseEstimator | None = None
    # for each video, the name by which its files of skeletons are found
    names: dict[Path, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        joints, rotation = self.experiment.clip.skeleton.num_joints, self.experiment.data.rotation
        if self.file is None:
            if "pose" in self.experiment.streams or self.experiment.clip.fade_background:
                alternative = "name a file of skeletons with --pose"
                self.estimator = PoseEstimator(joints, alternative, self.estimation, self._say)
            return
        self.estimation.refuse_beside("--pose")
        if self.file.suffix not in PICKLES:
            self.files = PoseFolder(self.file, self.max_people, rotation)

    def survey(self, headers: dict[Path, Header]) -> None:
        """Find the files with the skeletons of all videos by name, and say in which formats they are.

        Raises UserError.
        """
        self.names = {video: original_name(video) for video in headers}
        if self.files is not None:
            self.files.survey({self.names[video]: header for video, header in headers.items()}, self._say)

    def of(self, video: Path, header: Header, out: Path) -> Poses | None:
        """The skeletons of a video, or None if the experiment does not need them and --pose is not given.

        Estimated skeletons are written to `out` as STEM.npz, where STEM is the `safe_stem` of the video. Raises
        UserError.
        """
        if self.file is not None:
            return self._checked(self._from_file(self.file, video, header))
        if self.estimator is None:
            self._say(
                f"{printable(str(video))}: without --pose, frames are not cropped to the people before the network "
                "gets them"
            )
            return None
        with Progress(self.console, "estimating poses", header.frames) as progress:
            poses = self.estimator.estimate(str(video), header, self.max_people, progress.advance)
        write_poses(out / f"{safe_stem(video)}.npz", poses)
        return poses

    def people(self, frame: av.VideoFrame) -> Sequence[Person]:
        """The people in a frame of a live source; none if the experiment needs no skeletons."""
        return [] if self.estimator is None else self.estimator.estimator.people(frame.to_ndarray(format="rgb24"))

    def _from_file(self, file: Path, video: Path, header: Header) -> Poses:
        if self.files is None:
            return read_poses(file, video, header, Path(self.experiment.data.cache), self.experiment.data.rotation)
        source, poses = self.files.poses(self.names[video], header)
        if source.suffix != ".npz":
            poses = with_square_pixels(poses, header)
        check_place(file, poses, video, header)
        return poses

    def _checked(self, poses: Poses) -> Poses:
        num_joints, expected = poses.joints.shape[2], self.experiment.clip.skeleton.num_joints
        if num_joints != expected:
            raise UserError(
                f"{self.file} has {num_joints} joints per person, but experiment {self.experiment.name} needs "
                f"{expected} ({self.experiment.clip.skeleton}): name a file with {expected} joints, or a checkpoint "
                f"for {num_joints}"
            )
        return poses

    def _say(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)
