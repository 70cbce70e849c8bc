"""Frames of a live source: a stream on a network, a camera, or a file that is played at its own speed.

A thread reads the source. If a program is slower than the source, the oldest frames are dropped, so the program's
delay never exceeds a limit.
"""

import contextlib
import os
import stat
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import av.container

from pipelines.videos.container import CONTAINERS, VideoError, display_of, open_source, open_video
from pipelines.videos.decode import Turner
from pipelines.videos.times import USUAL_RATE

PROTOCOLS = "DUET_PROTOCOLS"  # environment variable with the network protocols that may be used
# The protocols that FFmpeg uses for an address that begins with one of these words.
NEEDED = {
    **{word: (word,) for word in ("tcp", "udp", "srt")},
    **{"http": ("http", "tcp"), "https": ("https", "tls", "tcp"), "rtmp": ("rtmp", "tcp"), "rtp": ("rtp", "udp")},
    **{"rtsp": ("rtsp", "rtp", "udp", "tcp"), "rtsps": ("rtsps", "rtp", "udp", "tls", "tcp")},
}
# Containers of streams. Playlists (HLS, DASH, SDP) are not among them, because they refer to other addresses and files.
STREAMS = f"{CONTAINERS['format_whitelist']},flv,rtsp,mpjpeg,mjpeg"
# Protocols that send a file faster than it should be played, so that LiveSource has to wait before each frame.
PACED = ("http", "https")
PATIENCE = 10.0  # a source that sends nothing for this many seconds has ended
SLOWEST, FASTEST = 1, 240  # frames per second; if a source claims a rate outside these limits, USUAL_RATE is assumed
UNIT = Fraction(1, 90_000)


@dataclass(frozen=True, slots=True)
class LiveFrame:
    """A frame, its number in the source from 0, and the time at which it arrived, according to time.monotonic()."""

    number: int
    arrived: float
    frame: av.VideoFrame


class LiveTimes:
    """The times at which the frames of a live source are shown. This class has the methods of FrameTimes."""

    def __init__(self) -> None:
        self.shown: list[float] = []  # when each frame that has arrived is shown, in seconds after the first frame
        self.usual = Fraction(USUAL_RATE)  # frames per second, until the source states a rate

    unit = UNIT

    def seconds(self, frame: int) -> float:
        """When a frame is shown, in seconds after the first one.

        For frames that have not arrived yet, an even rate is assumed.
        """
        if frame < len(self.shown):
            return self.shown[frame]
        past = frame - len(self.shown) + 1
        return (self.shown[-1] if self.shown else 0.0) + past / float(self.usual)

    def at(self, frame: int) -> int:
        """The time at which a frame is shown, in units of `unit` seconds after the first frame."""
        return round(self.seconds(frame) / UNIT)

    def rate(self) -> Fraction:
        """The number of frames per second, as the source says."""
        return self.usual


class LiveSource:
    """Reads a source in a thread. Use it as a context manager, and take its frames with `next`.

    address: an address such as rtsp://camera/1, a camera's device file, or a video file.
    max_delay: frames that arrived more than this many seconds ago are dropped.
    Raises VideoError for a source that cannot be opened, or whose protocol the user has not allowed (`check_address`).
    """

    def __init__(self, address: str, max_delay: float):
        self.address, self.max_delay = address, max_delay
        self.word = address.partition("://")[0] if "://" in address else ""
        self.is_paced = self.word in PACED or (not self.word and not _is_device(address))
        if self.word:
            check_address(address)
        self.times, self.dropped = LiveTimes(), 0
        self._waiting: deque[LiveFrame] = deque()
        self._changed, self._stop = threading.Condition(), threading.Event()
        self._ended = False
        self._error: VideoError | None = None
        self._thread = threading.Thread(target=self._read, name="live", daemon=True)

    def __enter__(self) -> "LiveSource":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(PATIENCE)

    @property
    def arrived(self) -> int:
        """The number of frames that have arrived so far."""
        return len(self.times.shown)

    def next(self) -> LiveFrame | None:
        """Wait for the next frame. None if the source has ended. Raises VideoError if it ended with an error."""
        with self._changed:
            while True:
                self.drop_old()
                if self._waiting:
                    return self._waiting.popleft()
                if self._ended:
                    if self._error is not None:
                        raise self._error
                    return None
                self._changed.wait()

    def drop_old(self) -> None:
        """Drop frames that have waited for more than `max_delay` seconds, but not the last frame of the source."""
        with self._changed:
            while self._waiting and time.monotonic() - self._waiting[0].arrived > self.max_delay:
                if self._ended and len(self._waiting) == 1:
                    return
                self._waiting.popleft()
                self.dropped += 1

    def _read(self) -> None:
        error = None
        try:
            self._read_frames()
        except VideoError as problem:
            error = problem
        with self._changed:
            self._ended, self._error = True, error
            self._changed.notify()

    def _read_frames(self) -> None:
        turner: Turner | None = None
        start, first = time.monotonic(), None
        with self._open() as (container, stream):
            rate = stream.average_rate
            self.times.usual = rate if rate and SLOWEST <= rate <= FASTEST else self.times.usual
            for number, frame in enumerate(container.decode(stream)):
                turner = turner or Turner(display_of(stream, frame).turn)
                now = time.monotonic() - start
                first = first if first is not None else (frame.time or 0.0, now)
                shown = now - first[1] if frame.time is None else frame.time - first[0]
                if self.is_paced:
                    now = first[1] + shown
                    if self._stop.wait(max(0.0, start + now - time.monotonic())):
                        return
                if self._stop.is_set():
                    return
                self._put(LiveFrame(number, start + now, turner(frame)), shown)

    def _put(self, frame: LiveFrame, shown: float) -> None:
        last = self.times.shown[-1] if self.times.shown else -1.0
        self.times.shown.append(max(shown, last + 2 * float(UNIT)))
        with self._changed:
            self._waiting.append(frame)
            while len(self._waiting) > max(2, self.max_delay * self.times.usual):
                self._waiting.popleft()
                self.dropped += 1
            self._changed.notify()

    @contextlib.contextmanager
    def _open(self) -> Iterator[tuple[av.container.InputContainer, av.VideoStream]]:
        if self.word:
            options = {"protocol_whitelist": ",".join(allowed_protocols()), "format_whitelist": STREAMS}
            opened = open_source(self.address, options, PATIENCE)
        elif _is_device(self.address):
            options = {"protocol_whitelist": "file", "format_whitelist": "video4linux2,v4l2"}
            opened = open_source(self.address, options, PATIENCE, device="v4l2")
        else:
            opened = open_video(self.address, PATIENCE)
        with opened as pair:
            yield pair


def allowed_protocols() -> list[str]:
    """The network protocols that the user allows. Protocols that can read local files are never among them."""
    words = {word.strip() for word in os.environ.get(PROTOCOLS, "").split(",")}
    return sorted(words & {protocol for needed in NEEDED.values() for protocol in needed})


def check_address(address: str) -> None:
    """Raise VideoError unless the user allows the protocols that an address needs."""
    word = address.partition("://")[0]
    needed = NEEDED.get(word)
    if needed is None:
        known = ", ".join(f"{known}://" for known in NEEDED)
        raise VideoError(f"addresses that begin with {word}:// cannot be read, only those that begin with {known}")
    if not set(needed) <= set(allowed_protocols()):
        raise VideoError(
            f"addresses that begin with {word}:// are not opened unless you trust the source and set the environment "
            f"variable {PROTOCOLS}={','.join(needed)}"
        )


def _is_device(address: str) -> bool:
    path = Path(address)
    return path.exists() and stat.S_ISCHR(path.stat().st_mode)
