"""Predicts a live source: names the action of the last seconds again and again, and drops frames if it falls behind."""

import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.live import Live
from rich.text import Text

from kernels.names import SHORT, printable
from pipelines.annotate.tracking import Person, StreamTracks, follow
from pipelines.packs.format import PackSettings
from pipelines.videos.container import VideoError
from pipelines.videos.live import LiveFrame, LiveSource
from pipelines.videos.turn import AnnotatedImage
from pipelines.videos.windows import WindowFrames, window_table
from trainer.predict.file import PRESENT
from trainer.predict.panel import best_of
from trainer.predict.result import Prediction, Window, top
from trainer.predict.scorer import Scorer
from trainer.predict.skeletons import Skeletons
from trainer.predict.video import AnnotatedVideo
from trainer.predict.window_choice import WindowChoice
from trainer.report.text import class_names_in_pictures

REACH = 30.0  # seconds that the timeline of the annotated video shows
EVERY = 5.0  # seconds between two lines if the output is not a terminal
MARGIN = 2  # a window may have at most MARGIN times its usual number of frames
RECENT = 60  # the rate is measured over this many frames


@dataclass
class LivePredictor:
    """Predicts a live source until it ends, or until Ctrl-C.

    skeletons: finds the people in each frame, if the network needs skeletons. per_person: whether each person is
    labelled separately.
    """

    scorer: Scorer
    choice: WindowChoice
    skeletons: Skeletons
    console: Console
    per_person: bool = False
    tracks: StreamTracks = field(default_factory=StreamTracks)  # used with `per_person` only
    recent: deque[tuple[LiveFrame, Sequence[Person]]] = field(default_factory=deque)
    windows: list[Window] = field(default_factory=list)
    # for each window, seconds from the arrival of its last frame to its scores
    delays: list[float] = field(default_factory=list)
    # for each window, seconds that its last frame waited to be processed
    waits: list[float] = field(default_factory=list)
    finished: deque[float] = field(default_factory=lambda: deque(maxlen=RECENT))  # times at which frames were processed

    def run(self, source: LiveSource, copy: Path) -> Prediction:
        """Predict the source, and write its annotated copy to the file `copy`.

        Raises VideoError if the source fails or ends before the first result.
        """
        names = self.scorer.experiment.data.class_names
        annotated = AnnotatedVideo(
            copy,
            source.times,
            None,
            self.scorer.experiment.clip.skeleton,
            class_names=class_names_in_pictures(names),
            reach=REACH,
        )
        with source, annotated, Screen(self, source) as screen:
            try:
                self._follow(source, annotated, screen)
            except KeyboardInterrupt:
                self.console.print("stopped; the results so far are written")
            except VideoError as error:
                if self.windows:
                    text = f"the source has ended ({error}); the results so far are written"
                    self.console.print(text, markup=False, highlight=False, soft_wrap=True)
                else:
                    raise
            if not self.windows:
                if self.per_person:
                    raise VideoError("nobody was visible for long enough to get a label; leave out --per-person")
                raise VideoError("the source has ended before there was a result")
        live = {"dropped_frames": source.dropped, "largest_delay_s": round(max(self.delays, default=0.0), 3)}
        rate = float(source.times.rate())
        return Prediction(source.address, source.arrived, rate, source.times, names, self.windows, live)

    def _follow(self, source: LiveSource, annotated: AnnotatedVideo, screen: "Screen") -> None:
        """Score a window about every `choice.stride` frames of the source, and once more at the end."""
        next_end, last = 0.0, None
        while (frame := source.next()) is not None:
            began, shown = time.monotonic(), source.times.seconds(frame.number)
            stride, length = (count / float(source.times.rate()) for count in (self.choice.stride, self.choice.window))
            next_end = next_end or shown + length
            people = self.skeletons.people(frame.frame)
            self.recent.append((frame, people))
            annotated.show(frame.frame, frame.number, self._bodies(frame.number, people))
            # Drop frames that are older than a window. If a source gives wrong times, no frame may look old, so the
            # number of frames is limited too. Otherwise the frames would fill the memory.
            most = MARGIN * self.choice.window
            while source.times.seconds(self.recent[0][0].number) <= shown - length + 1e-6 or len(self.recent) > most:
                self.recent.popleft()
            self.tracks.forget(self.recent[0][0].number)
            last = frame
            # Score a window as soon as the next frame would lie beyond the end of the window.
            if shown + 1 / float(source.times.rate()) >= next_end - 1e-6 or len(annotated.waiting) >= most:
                before, started = source.dropped, time.monotonic()
                self._score(annotated, began - frame.arrived)
                next_end, last = max(next_end + stride, shown + stride / 2), None
                source.drop_old()
                if source.dropped > before:  # scoring takes at most half of the time, so that windows get enough frames
                    next_end = max(next_end, shown + 2 * (time.monotonic() - started))
            self.finished.append(time.monotonic())
            screen.refresh()
        if last is not None:
            self._score(annotated, time.monotonic() - last.arrived)
            screen.refresh()

    def rate(self) -> float:
        """Frames per second that are processed at present."""
        return (len(self.finished) - 1) / max(self.finished[-1] - self.finished[0], 1e-6) if self.finished else 0.0

    def _score(self, annotated: AnnotatedVideo, waited: float) -> None:
        """Score the recent frames as one window, and write the annotated frames that waited for these scores."""
        frames = [frame for frame, _ in self.recent]
        numbers = np.array([frame.number for frame in frames])
        people, joints = self._rows(numbers.tolist())
        windows, explanations = [], []
        if people:
            image = AnnotatedImage(frames[0].frame.width, frames[0].frame.height)
            spans = [(0, len(frames))] * len(people)
            slices = [slice(None) if person is None else slice(row, row + 1) for row, person in enumerate(people)]
            source = WindowFrames(
                frames=iter([frame.frame for frame in frames]),
                table=window_table(joints, image, spans, slices),
                windows=spans,
                settings=PackSettings.of(self.scorer.experiment.clip),
                each=lambda _: None,
            )
            loader = self.scorer.loader(source)
            for row, batch in enumerate(loader.epoch(0)):
                scores = self.scorer.score(batch)
                windows.append(Window(int(numbers[0]), int(numbers[-1]) + 1, scores, people[row]))
                seen = self.scorer.explain(batch, loader.plan(0, row), 0, (image.width, image.height), scores)
                if seen is not None:
                    places = {stream: numbers[places] for stream, places in seen.frames.items()}
                    explanations.append(replace(seen, frames=places))
            self.delays.append(time.monotonic() - frames[-1].arrived)
            self.waits.append(waited)
            self.windows += windows
        annotated.write(int(numbers[-1]) + 1, windows, explanations)

    def _rows(self, numbers: list[int]) -> tuple[list[int | None], np.ndarray]:
        """What to score in the frames with these numbers.

        Returns the numbers of the people who are labelled, or [None] if all people are labelled together, and the
        joints [M, T, V, 3] of these people.
        """
        num_joints, most = self.scorer.experiment.clip.skeleton.num_joints, self.skeletons.max_people
        if self.per_person:
            visible = self.tracks.most_visible(numbers, PRESENT, most)
            return list(visible), np.stack(list(visible.values())) if visible else np.zeros((0,))
        people = [people for _, people in self.recent]
        nobody = np.zeros((0, len(numbers), num_joints, 3), np.float32)
        return [None], follow(people, most, num_joints) if any(people) else nobody

    def _bodies(self, number: int, people: Sequence[Person]) -> Mapping[int, np.ndarray]:
        """The joints [V, 3] of the people in frame `number`, by the number of the person."""
        if self.per_person:
            return self.tracks.add(number, people)
        return dict(enumerate(person.joints for person in people))


class Screen:
    """Shows the last result, the frames per second and the delay. A terminal shows one line, which is updated.

    Other outputs get a new line every few seconds.
    """

    def __init__(self, predictor: LivePredictor, source: LiveSource):
        self.predictor, self.source = predictor, source
        self.is_live = predictor.console.is_terminal
        self.display = Live(console=predictor.console, get_renderable=self.line, refresh_per_second=8)
        self.shown_at, self.num_shown = 0.0, 0

    def __enter__(self) -> "Screen":
        if self.is_live:
            self.display.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.is_live:
            self.display.stop()

    def refresh(self) -> None:
        """If the output is not a terminal, print each new result, but at most one line in EVERY seconds."""
        has_news = len(self.predictor.windows) > self.num_shown
        if not self.is_live and has_news and time.monotonic() - self.shown_at > EVERY:
            self.shown_at, self.num_shown = time.monotonic(), len(self.predictor.windows)
            self.predictor.console.print(self.line(), soft_wrap=True)

    def line(self) -> Text:
        """The last result, the frames per second and the delay as one line."""
        predictor, names = self.predictor, self.predictor.scorer.experiment.data.class_names
        if not predictor.windows:
            return Text(f"{printable(self.source.address, SHORT)}: waiting for the first window")
        window = predictor.windows[-1]
        if window.person is None:
            best = [(name, share) for _, name, share in top(next(iter(window.probability.values())), names, 3)]
        else:
            latest = [each for each in predictor.windows[-predictor.skeletons.max_people :] if each.end == window.end]
            best = [(f"{person}: {name}", share) for person, _, name, share in best_of(latest, names)]
        guesses = ", ".join(f"{printable(name)} {share:.0%}" for name, share in best)
        facts = (
            f"{predictor.rate():.1f} frames/s, {predictor.delays[-1]:.2f} s delay, {self.source.dropped} frames dropped"
        )
        return Text(f"{self.source.times.seconds(window.end):.1f} s  {guesses}  ({facts})")
