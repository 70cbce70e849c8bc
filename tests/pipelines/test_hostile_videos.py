"""Only files with common containers and codecs are opened. Other files are refused before any decoder runs."""

import os
import socket
from pathlib import Path

import av
import numpy as np
import pytest

from pipelines.videos.header import read_header


def film(path: Path, codec: str, pixels: str) -> str:
    with av.open(str(path), "w") as file:
        stream = file.add_stream(codec, rate=30)
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = 64, 48, pixels
        for level in range(8):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 20 * level, np.uint8), "rgb24")
            file.mux(stream.encode(frame.reformat(format=pixels)))
        file.mux(stream.encode(None))
    return str(path)


LIST = "ffconcat version 1.0\nfile good.mp4\n"


@pytest.mark.parametrize(("codec", "pixels"), [("magicyuv", "yuv444p"), ("snow", "yuv420p"), ("utvideo", "yuv420p")])
def test_a_rare_codec_is_refused_by_name_until_it_is_allowed(tmp_path, monkeypatch, codec, pixels):
    video = film(tmp_path / "a.avi", codec, pixels)
    header = read_header(video)
    assert f"the video has the codec {codec}, which is not decoded" in header.reason
    assert f"DUET_CODECS={codec};" in header.reason
    monkeypatch.setenv("DUET_CODECS", f"cinepak,{codec}")
    assert read_header(video).frames == 8


def test_no_decoder_of_a_rare_codec_is_opened(tmp_path):
    """FFmpeg gets our list of codecs before it opens a file, because it decodes frames if the header is incomplete."""
    video = film(tmp_path / "a.avi", "magicyuv", "yuv444p")
    av.logging.set_level(av.logging.VERBOSE)
    try:
        with av.logging.Capture(local=False) as lines:
            read_header(video)
    finally:
        av.logging.set_level(None)
    assert any("not on whitelist" in line for _, _, line in lines)


@pytest.mark.parametrize(("codec", "file"), [("libx264", "a.mp4"), ("mjpeg", "a.avi"), ("libvpx-vp9", "a.webm")])
def test_common_codecs_are_read(tmp_path, codec, file):
    assert read_header(film(tmp_path / file, codec, "yuvj420p" if codec == "mjpeg" else "yuv420p")).frames == 8


def test_playlists_and_other_containers_are_refused(tmp_path):
    """A playlist could make FFmpeg open other files or network addresses."""
    film(tmp_path / "good.mp4", "libx264", "yuv420p")
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0)
        address = f"http://127.0.0.1:{server.getsockname()[1]}/a.ts"
        for text in (f"#EXTM3U\n#EXTINF:1,\n{address}\n", f"ffconcat version 1.0\nfile '{address}'\n", LIST):
            (tmp_path / "a.mp4").write_text(text)
            assert "cannot be decoded" in read_header(str(tmp_path / "a.mp4")).reason
        with pytest.raises(BlockingIOError):
            server.accept()
    assert "containers that can be decoded: avi,mov" in read_header(film(tmp_path / "a.flv", "flv", "yuv420p")).reason


def test_pipes_and_devices_are_refused_before_they_are_opened(tmp_path):
    os.mkfifo(tmp_path / "a.mp4")
    assert "is a pipe, not a file" in read_header(str(tmp_path / "a.mp4")).reason
    assert "is a device, not a file" in read_header("/dev/zero").reason
