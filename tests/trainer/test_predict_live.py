"""`predict --live` keeps up with a source by dropping frames, and opens only allowed addresses."""

import functools
import http.server
import json
import socket
import threading
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from rich.console import Console
from torch import nn

from models.networks import build_model
from models.weights.loading import load_weights
from pipelines.annotate.tracking import Person, StreamTracks
from pipelines.demo.classes import DemoConfig, clip_ids
from pipelines.demo.clip import write_clip
from pipelines.videos.decode import decode
from pipelines.videos.header import read_header
from pipelines.videos.live import LiveSource
from tests.trainer.predicting import VIDEO, predicted, rgb_network
from trainer.cli import run_command
from trainer.predict.file import FilePredictor
from trainer.predict.live import LivePredictor
from trainer.predict.scorer import Scorer
from trainer.predict.skeletons import Skeletons
from trainer.predict.window_choice import WindowChoice
from trainer.runtime.precision import Precision

QUIET = Console(quiet=True)


class Slow(nn.Module):
    """A network that takes at least `seconds` for each window."""

    def __init__(self, network: nn.Module, seconds: float):
        super().__init__()
        self.network, self.seconds = network, seconds

    def forward(self, *inputs: torch.Tensor | None):
        time.sleep(self.seconds)
        return self.network(*inputs)


@pytest.fixture(scope="module")
def scorer(tmp_path_factory) -> Scorer:
    folder = tmp_path_factory.mktemp("live")
    _, experiment = rgb_network(folder)
    network = build_model(experiment.model).eval()
    load_weights(network, folder / "net.safetensors")
    return Scorer(experiment, network, network, Precision("fp32", torch.device("cpu")), explains=True)


def live(scorer: Scorer, choice: WindowChoice) -> LivePredictor:
    return LivePredictor(scorer, choice, Skeletons(None, 2, scorer.experiment, QUIET), QUIET)


def test_a_file_at_its_own_speed_has_the_windows_of_the_file(scorer, paths, tmp_path):
    video, choice = paths[0] / f"{VIDEO}.mp4", WindowChoice(30, 15, 30)
    header = read_header(str(video))
    whole = FilePredictor(scorer, choice, False, tmp_path, QUIET).run(video, header, None)
    began = time.monotonic()
    source = LiveSource(str(video), 600)
    found = live(scorer, choice).run(source, tmp_path / "live.mp4")
    assert time.monotonic() - began > 0.9 * header.frames / 30
    assert (source.dropped, found.frames) == (0, header.frames)
    spans = [(window.start, window.end) for window in whole.windows]
    assert [(window.start, window.end) for window in found.windows[:-1]] == spans[:-1]
    assert (found.windows[-1].start, found.windows[-1].end) == (header.frames - 30, header.frames)
    for expected, window in zip(whole.windows[:-1], found.windows[:-1], strict=True):
        torch.testing.assert_close(window.probability["rgb"], expected.probability["rgb"])
    assert len(list(decode(str(tmp_path / "live.mp4"), 999))) == header.frames
    copy = read_header(str(tmp_path / "live.mp4"))
    assert (copy.width, copy.height) == (header.width, header.height)


def test_a_network_slower_than_the_video_loses_frames_and_does_not_fall_behind(scorer, paths, tmp_path):
    """Without dropping, the 17 windows of this 3 s video would take 8 s, so the last frames would wait for 5 s."""
    slow = Scorer(scorer.experiment, scorer.network, Slow(scorer.network, 0.5), scorer.precision)
    source, predictor = LiveSource(str(paths[0] / f"{VIDEO}.mp4"), 0.2), live(slow, WindowChoice(10, 5, 10))
    found = predictor.run(source, tmp_path / "live.mp4")
    written = len(list(decode(str(tmp_path / "live.mp4"), 999)))
    assert source.dropped > 5
    assert found.live is not None
    assert (found.frames - source.dropped, found.live["dropped_frames"]) == (written, source.dropped)
    assert max(predictor.waits) < 4  # the maximum delay of 0.2 s, and more time for a busy machine
    times = [found.times.seconds(window.end) for window in found.windows]
    assert times == sorted(times)
    assert found.windows[-1].end == found.frames


@pytest.fixture
def server(paths, tmp_path) -> Iterator[tuple[str, Path]]:
    """Return the address and the folder of an HTTP server. It streams the tiny demo's video as stream.ts."""
    folder = tmp_path / "web"
    folder.mkdir()
    with av.open(str(paths[0] / f"{VIDEO}.mp4")) as source, av.open(str(folder / "stream.ts"), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as web:
        threading.Thread(target=web.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{web.server_port}", folder
        web.shutdown()


def test_an_address_is_opened_only_if_its_protocols_are_allowed(server, paths, tmp_path, monkeypatch, capsys):
    address, folder = server
    words, _ = rgb_network(tmp_path)
    command = ["predict", *words, "--checkpoint", str(tmp_path / "net.safetensors"), "--out", str(tmp_path / "out")]
    monkeypatch.delenv("DUET_PROTOCOLS", raising=False)
    assert run_command([*command, "--live", f"{address}/stream.ts"]) == 2
    (setting,) = (word for word in capsys.readouterr().err.split() if word.startswith("DUET_PROTOCOLS="))
    monkeypatch.setenv(*setting.split("="))
    assert run_command([*command, "--live", f"{address}/stream.ts", "--window", "20", "--max-delay", "600"]) == 0
    found = json.loads((tmp_path / "out" / "stream_live.json").read_text())
    assert found["dropped_frames"] == 0
    assert found["frames"] == read_header(str(paths[0] / f"{VIDEO}.mp4")).frames
    assert found["windows"][0]["last_frame"] == 19
    assert (tmp_path / "out" / "stream_live.mp4").exists()
    playlist = f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:3,\nfile://{folder}/stream.ts\n#EXT-X-ENDLIST\n"
    # playlists are not opened, because a playlist could make the program read a local file
    (folder / "list.m3u8").write_text(playlist)
    for name, setting in (("list.m3u8", "http,tcp"), ("list.m3u8", "http,tcp,file"), ("stream.ts", "http")):
        monkeypatch.setenv("DUET_PROTOCOLS", setting)
        assert run_command([*command, "--live", f"{address}/{name}"]) == 2
    missing = str(tmp_path / "nothing.mp4")
    for wrong in ("/dev/null", "gopher://127.0.0.1/a", "file:///etc/passwd", missing, str(tmp_path)):
        assert run_command([*command, "--live", wrong]) == 2
        assert "error: " in capsys.readouterr().err
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["stream_live.json", "stream_live.mp4"]


def test_a_stream_without_an_end_is_predicted_until_its_sender_stops(server, paths, tmp_path, monkeypatch):
    """The sender is a program that writes MPEG-TS to a TCP connection and closes it in the middle of a frame."""
    _, folder = server
    stream = (folder / "stream.ts").read_bytes()
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def send() -> None:
            connection, _ = listener.accept()
            with connection:
                for start in range(0, len(stream) - 300, 4096):
                    connection.sendall(stream[: len(stream) - 300][start : start + 4096])
                    time.sleep(0.02)

        sender = threading.Thread(target=send, daemon=True)
        sender.start()
        words, _ = rgb_network(tmp_path)
        monkeypatch.setenv("DUET_PROTOCOLS", "tcp")
        address = f"tcp://127.0.0.1:{listener.getsockname()[1]}"
        command = ["predict", *words, "--checkpoint", str(tmp_path / "net.safetensors"), "--out", str(tmp_path / "out")]
        assert run_command([*command, "--live", address, "--window", "20", "--max-delay", "600"]) == 0
        sender.join()
    (file,) = (tmp_path / "out").glob("*_live.json")
    found = json.loads(file.read_text())
    frames = read_header(str(paths[0] / f"{VIDEO}.mp4")).frames
    assert frames - 5 <= found["frames"] <= frames
    assert found["windows"][0]["last_frame"] == 19


def test_each_person_of_a_live_source_has_a_label(tiny, trained, tmp_path):
    """Two people push each other. Each person gets the same scores with --live as without it."""
    config = DemoConfig(num_train=12, num_val=12, size=(640, 480), num_frames=(24, 24))
    (pushing,) = (clip for clip in clip_ids(config) if clip.label == 11 and clip.split == "xsub_train")
    video = tmp_path / f"{write_clip(config, pushing, tmp_path)}.mp4"
    options = ("--per-person", "--window", "24", "--estimator", "blazepose")
    (whole,) = predicted(tiny, trained, tmp_path / "file", video, *options).values()
    (live,) = predicted(tiny, trained, tmp_path / "live", "--live", video, *options, "--max-delay", "600").values()
    scores = [
        sorted([guess["probability"] for guess in window["fused"]] for window in found["windows"])
        for found in (whole, live)
    ]
    assert len(scores[0]) == 2
    np.testing.assert_allclose(scores[0], scores[1], atol=1e-5)
    assert [window["person"] for window in live["windows"]] == [1, 2]
    assert [person["person"] for person in live["people"]] == [1, 2]


def test_a_person_keeps_the_number_in_a_stream_until_nobody_remembers_the_person():
    def person(x: float) -> Person:
        return Person(np.concatenate([np.arange(34).reshape(17, 2) + np.array([x, 0]), np.ones((17, 1))], axis=1))

    tracks = StreamTracks()
    for number in range(10):
        seen = tracks.add(number, [person(500 - number), *([person(number)] if number < 6 else [])])
        assert seen[0][0, 0] == 500 - number
    joints = tracks.most_visible(range(10), 0.25, 2)
    assert list(joints) == [0, 1]
    assert joints[1].shape == (10, 17, 3)
    assert (joints[1][5, 0, 0], joints[1][6:].any()) == (5, False)
    assert list(tracks.most_visible(range(10), 0.7, 2)) == list(tracks.most_visible(range(10), 0.25, 1)) == [0]
    tracks.forget(before=6)
    assert list(tracks.add(10, [person(6), person(490)])) == [0, 2]
    assert list(tracks.most_visible(range(6, 11), 0.25, 9)) == [0]
    tracks.forget(before=10)
    assert list(tracks.add(11, [person(6)])) == [2]


def test_times_of_frames_increase_even_if_the_source_repeats_them():
    source = LiveSource("nothing.mp4", 1)
    for shown in (0.0, 0.0, 0.5, 0.4):
        source._put(None, shown)  # pyright: ignore[reportArgumentType]
    assert (np.diff([source.times.at(frame) for frame in range(6)]) > 0).all()


def test_a_source_with_wrong_times_keeps_few_frames(scorer, tmp_path):
    """The timestamps of this video put all its frames within one millisecond, so no window could ever be full.

    Nevertheless a window is scored after every 20 frames, so that the memory does not fill with frames.
    """
    with av.open(str(tmp_path / "fast.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=30)
        stream.width, stream.height, stream.codec_context.time_base = 96, 64, Fraction(1, 90_000)
        for number in range(50):
            frame = av.VideoFrame.from_ndarray(np.full((64, 96, 3), 5 * number, np.uint8), format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, 90_000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    source, predictor = LiveSource(str(tmp_path / "fast.mp4"), 600), live(scorer, WindowChoice(10, 5, 10))
    found = predictor.run(source, tmp_path / "live.mp4")
    assert source.dropped == 0
    assert [window.end for window in found.windows] == [20, 40, 50]
    assert all(window.end - window.start <= 20 for window in found.windows)
