"""Predicts a video file: decodes it once, scores its windows, and writes an annotated copy and a picture."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.markup import escape

from kernels.names import SHORT, printable, safe_stem
from kernels.program import UserError
from pipelines.annotate.keypoints import Poses
from pipelines.annotate.tracking import separate_people
from pipelines.packs.format import PackSettings
from pipelines.progress import Progress
from pipelines.videos.decode import SLACK, decode
from pipelines.videos.header import Header
from pipelines.videos.times import FrameTimes, frame_times
from pipelines.videos.turn import NO_TURN, AnnotatedImage, Turn
from pipelines.videos.windows import WindowFrames, Windows, window_table
from trainer.predict.result import Prediction, Window
from trainer.predict.scorer import Scorer, on_cpu
from trainer.predict.sheet import SheetColumn, write_sheet
from trainer.predict.video import AnnotatedVideo, Explanation
from trainer.predict.window_choice import WindowChoice
from trainer.report.contact_sheet import NUM_CLIPS
from trainer.report.text import class_names_in_pictures

# a person gets a label in a window if the person is visible in at least this share of the window's frames
PRESENT = 0.25


@dataclass(frozen=True, slots=True)
class Row:
    """A row to score: a window of the video, and the person to whom the scores belong, or None for all people."""

    start: int
    end: int
    person: int | None = None


@dataclass(frozen=True, slots=True)
class FilePredictor:
    """Predicts video files. per_person: whether each person is labelled separately."""

    scorer: Scorer
    choice: WindowChoice
    per_person: bool
    out: Path
    console: Console

    def run(self, video: Path, header: Header, poses: Poses | None) -> Prediction:
        """Score all windows of a video.

        Writes an annotated copy of the video (STEM.mp4) and a picture of some windows (STEM.png) to the folder `out`.
        STEM is the `safe_stem` of the video. Raises VideoError if the video cannot be decoded, and UserError if each
        person should get a label but nobody is visible.
        """
        clip, names = self.scorer.experiment.clip, self.scorer.experiment.data.class_names
        if poses is not None and self.per_person:
            poses = Poses(separate_people(poses.joints), poses.height, poses.width, poses.rotation)
        image = AnnotatedImage(*header.display) if poses is None else poses.image()
        total, times = header.frames if poses is None else poses.joints.shape[1], frame_times(str(video))
        joints = np.zeros((0, total, clip.skeleton.num_joints, 3), np.float32) if poses is None else poses.joints
        rows = self._rows(self.choice.of(total), joints, video)
        people = [slice(None) if row.person is None else slice(row.person, row.person + 1) for row in rows]
        spans = [(row.start, row.end) for row in rows]
        table = window_table(joints, image, spans, people)
        annotated = self._annotated(video, header, poses, image, times, total)
        frames = WindowFrames(
            frames=decode(str(video), total + SLACK, image),
            table=table,
            windows=spans,
            settings=PackSettings.of(clip),
            each=annotated.show,
        )
        title = f"{escape(printable(video.name, SHORT))}: windows"
        with annotated, Progress(self.console, title, len(rows)) as progress:
            windows, columns = self._score(rows, frames, annotated, progress, total)
        prediction = Prediction(str(video), total, float(times.rate()), times, names, windows)
        write_sheet(self.out / f"{safe_stem(video)}.png", columns, prediction, clip.skeleton)
        return prediction

    def _rows(self, windows: Windows, joints: np.ndarray, video: Path) -> list[Row]:
        """The rows to score, in the order of the windows. Raises UserError if no person can get a label."""
        if not self.per_person:
            return [Row(start, end) for start, end in windows]
        visible = np.any(joints[..., 2] > 0, axis=-1)  # [M, T]
        rows = [
            Row(start, end, person)
            for start, end in windows
            for person in np.nonzero(visible[:, start:end].mean(axis=1) >= PRESENT)[0].tolist()
        ]
        if not rows:
            raise UserError(f"{video} shows nobody for long enough to get a label: leave out --per-person")
        return rows

    def _annotated(
        self, video: Path, header: Header, poses: Poses | None, image: AnnotatedImage, times: FrameTimes, total: int
    ) -> AnnotatedVideo:
        frames = header.frames_for(image)
        return AnnotatedVideo(
            self.out / f"{safe_stem(video)}.mp4",
            times,
            poses,
            self.scorer.experiment.clip.skeleton,
            size=(round(frames.size[0] * frames.pixel), frames.size[1]),
            turn=NO_TURN if frames.turn else Turn.of_code(header.turn),
            class_names=class_names_in_pictures(self.scorer.experiment.data.class_names),
            num_frames=total,
        )

    def _score(
        self, rows: Sequence[Row], frames: WindowFrames, annotated: AnnotatedVideo, progress: Progress, total: int
    ) -> tuple[list[Window], list[SheetColumn]]:
        """Score all rows, and write each frame of the annotated copy as soon as its windows are scored."""
        loader = self.scorer.loader(frames)
        in_sheet = {round(i * (len(rows) - 1) / (NUM_CLIPS - 1)) for i in range(NUM_CLIPS)}
        windows: list[Window] = []
        columns: list[SheetColumn] = []
        of_span: list[Window] = []
        image = frames.table.image(0, "shown")
        explanations: list[Explanation] = []
        for number, batch in enumerate(loader.epoch(0)):
            row, plan, scores = rows[number], loader.plan(0, number), self.scorer.score(batch)
            window = Window(row.start, row.end, scores, row.person)
            own = self.scorer.explain(batch, plan, row.start, (image.width, image.height), scores)
            windows.append(window)
            of_span.append(window)
            explanations += [own] if own is not None else []
            if number in in_sheet:
                columns.append(SheetColumn(window, on_cpu(batch), plan, own, frames.table.clip_joints(number)))
            following = rows[number + 1] if number + 1 < len(rows) else None
            if following is None or following.start != row.start:
                # Each frame gets the labels of the window whose middle is nearest to it.
                middle = (row.start + row.end + following.start + following.end) // 4 if following else total + SLACK
                annotated.write(middle, of_span, explanations)
                of_span, explanations = [], []
            progress.advance()
        return windows, columns
