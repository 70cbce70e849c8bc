"""`prepare --decoder nvdec`: refused in a sentence without a GPU; what surrounds the engine, on DALI's CPU decoder;
and, on a GPU, the same frames as the CPU's.
"""

import io
import itertools

import numpy as np
import pytest
import torch
from PIL import Image

from pipelines import nvdec
from pipelines.encode import Job, VideoError, encode_clip

CPU = torch.device("cpu")
VP9 = {"auto-alt-ref": "1", "lag-in-frames": "16", "cpu-used": "8", "b": "800k"}


def clip(folder, video, decoder=None) -> np.ndarray:
    """[T, H, W, 3] of the clip that is made."""
    job = Job(
        **{"name": "clip", "video": str(video), "target": str(folder / "clip.mov"), "num_frames": 20},
        **{"region": (-20, -10, 150, 120), "side": 100.0, "width": 160, "height": 120, "box_pixels": 128, "quality": 2},
    )
    encoded = encode_clip(job, decoder)
    content, starts = (folder / "clip.mov").read_bytes(), itertools.accumulate([encoded.first, *encoded.sizes])
    packets = [content[start : start + size] for start, size in zip(starts, encoded.sizes, strict=False)]
    return np.stack([np.asarray(Image.open(io.BytesIO(packet)).convert("RGB"), np.int16) for packet in packets])


def test_dalis_frames_make_the_same_clip(tmp_path, film):
    """VP9, which DALI knows on a CPU as well: every frame in its place, colours within a few levels."""
    video = film.write(tmp_path / "a.webm", film.frames(20, 160, 120), "libvpx-vp9", **VP9)
    nvdec.check([str(video)], CPU)
    ours, theirs = clip(tmp_path, video), clip(tmp_path, video, lambda *call: nvdec.decode(*call, CPU))
    assert ours.shape == theirs.shape
    difference = np.abs(ours[:, None, ::2, ::2] - theirs[None, :, ::2, ::2]).mean(axis=(2, 3, 4))
    assert (difference.argmin(axis=1) == np.arange(20)).all()
    assert difference.diagonal().max() < 6


def test_what_dali_does_not_decode_is_one_bad_clip(tmp_path, film):
    video = film.write(tmp_path / "a.mp4", film.frames(20, 160, 120))  # H.264 needs the GPU
    with pytest.raises(VideoError, match="it does not decode on the GPU"):
        clip(tmp_path, video, lambda *call: nvdec.decode(*call, CPU))
    video.write_bytes(b"")
    with pytest.raises(VideoError, match="it does not open"):
        clip(tmp_path, video, lambda *call: nvdec.decode(*call, CPU))


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_without_a_gpu_it_is_one_sentence(scene):
    work = scene(8)
    with pytest.raises(ValueError, match=r"--decoder nvdec needs an NVIDIA GPU, .* leave it out to use the CPU"):
        work.prepare(decoder="nvdec")
    assert work.prepare()[0].num_frames.tolist() == [8]


@pytest.mark.gpu
def test_the_gpus_frames_are_the_cpus(scene):
    work = scene(8, 20, 31)
    cpu, gpu = work.prepare()[0], work.prepare(work.folder / "gpu", decoder="nvdec")[0]
    assert cpu.num_frames.tolist() == gpu.num_frames.tolist()
    for row, count in enumerate((8, 20, 31)):
        pictures = [
            np.stack([np.asarray(Image.open(io.BytesIO(packet)).convert("RGB"), np.int16) for packet in packets])
            for packets in (pack.read_frames(row, list(range(count)))[0] for pack in (cpu, gpu))
        ]
        difference = np.abs(pictures[0][:, None, ::2, ::2] - pictures[1][None, :, ::2, ::2]).mean(axis=(2, 3, 4))
        assert (difference.argmin(axis=1) == np.arange(count)).all()
        assert difference.diagonal().max() < 6
