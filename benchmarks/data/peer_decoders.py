"""A server that reads frames of videos with TorchCodec or SPDL, in the environment that peer.py makes.

Like peer_mmaction2.py it reads requests from standard input and writes answers to standard output, each as one line of
JSON, and imports nothing of Duet. Both libraries use one thread, and scale the frames while they decode.
"""

import json
import os
import sys
import time
from importlib import import_module
from typing import Any

import numpy as np


def torchcodec(video: str, numbers: list[int], side: int) -> np.ndarray:
    """Read frames as TorchCodec's documentation advises for training: by index, without a scan of the whole file."""
    resize = import_module("torchcodec.transforms").Resize((side, side))
    decoder = import_module("torchcodec.decoders").VideoDecoder(
        video, seek_mode="approximate", num_ffmpeg_threads=1, dimension_order="NHWC", transforms=[resize]
    )
    return decoder.get_frames_at(numbers).data.numpy()


def spdl(video: str, numbers: list[int], side: int) -> np.ndarray:
    """Read frames as SPDL's documentation advises: decode only the parts of the video that contain these frames."""
    io = import_module("spdl.io")
    scale = io.get_video_filter_desc(scale_width=side, scale_height=side, scale_mode=None, pix_fmt="rgb24")
    config = io.decode_config(decoder_options={"threads": "1"})
    frames = io.sample_decode_video(io.demux_video(video), numbers, decode_config=config, filter_desc=scale)
    return io.to_numpy(io.convert_frames(frames))


class Peer:
    """Answers each request by calling the method that the request names. The first request must be `open`."""

    def open(self, library: str, videos: list[str], side: int) -> dict:
        self.read, self.videos, self.side = {"torchcodec": torchcodec, "spdl": spdl}[library], videos, side
        self.read(videos[0], [0], side)
        return {}

    def run(self, frames: list[list[int]]) -> dict:
        """Read the frames numbered frames[i] from video number i. Returns wall-clock seconds and CPU seconds."""
        before = time.perf_counter(), time.process_time()
        for video, numbers in zip(self.videos, frames, strict=True):
            self.read(video, numbers, self.side)
        return {"seconds": time.perf_counter() - before[0], "cpu_seconds": time.process_time() - before[1]}

    def draw(self, video: int, numbers: list[int], out: str) -> dict:
        """Write frames of a video to the file `out`: [T, side, side, 3] uint8."""
        np.save(out, self.read(self.videos[video], numbers, self.side))
        return {}


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # the output of libraries must not mix with the answers
    peer = Peer()
    for line in sys.stdin:
        request: dict[str, Any] = json.loads(line)
        print(json.dumps(getattr(peer, request.pop("do"))(**request)), file=answers, flush=True)


if __name__ == "__main__":
    main()
