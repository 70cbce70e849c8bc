"""The CPU's decoder and DALI's operators differ by at most one level, for any region and any number of threads."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from pipelines import dali

pytest.importorskip("cykooz_resizer", reason="cykooz-resizer has no wheel for this machine")
from pipelines.cpu_decoder import TOGETHER, CpuDecoder

SIZE = 48
SIDES = [(96, 128), (64, 64), (63, 81), (33, 200)]  # (height, width) of pictures


def packet(height: int, width: int, rng: np.random.Generator, subsampling: int = 2) -> np.ndarray:
    """Encode a smooth random picture with sharp edges as JPEG.

    With `subsampling` 2, chroma has half the resolution.
    """
    coarse = Image.fromarray(rng.integers(0, 256, (6, 6, 3), np.uint8)).resize(
        (width, height), Image.Resampling.BICUBIC
    )
    picture = np.array(coarse)
    picture[height // 3 : height // 2, width // 4 : width // 2] = rng.integers(0, 256, 3)
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=92, subsampling=subsampling)
    return np.frombuffer(file.getvalue(), np.uint8)


def step(count: int, seed: int, beyond: float = 0.0):
    """Make the input of a step: random regions, some of them mirrored, up to `beyond` pixels outside the pictures."""
    rng = np.random.default_rng(seed)
    sides = [SIDES[number % len(SIDES)] for number in range(count)]
    packets = [packet(*side, rng, subsampling=(2, 0)[number % 5 == 4]) for number, side in enumerate(sides)]
    limits = np.array(sides, np.float32)
    low = rng.uniform(-beyond, 0.5, (count, 2)) * np.where(beyond, 1, limits)
    high = limits - rng.uniform(-beyond, 0.4, (count, 2)) * np.where(beyond, 1, limits)
    mirrored = (rng.random(count) < 0.5)[:, None] & np.array([False, True])
    start, end = np.where(mirrored, high, low), np.where(mirrored, low, high)
    return packets, start.astype(np.float32), end.astype(np.float32)


def decoded(*steps, threads: int = 1, prefetch: int = 1) -> list[torch.Tensor]:
    def source(number: int):
        if number >= len(steps):
            raise StopIteration
        return steps[number]

    decoder = CpuDecoder(source, SIZE, threads=threads, prefetch=prefetch)
    frames = [decoder.next() for _ in steps]
    with pytest.raises(StopIteration):
        decoder.next()
    return frames


def by_dali(packets, start, end) -> torch.Tensor:
    """Decode and resize with DALI's operators."""
    options = {"num_threads": 1, "device_id": None, "prefetch_queue_depth": 1}
    pipeline = dali._graph(lambda _: (packets, start, end), SIZE, "cpu", 0.0, batch_size=len(packets), **options)
    pipeline.build()
    return torch.from_dlpack(pipeline.run()[0].as_tensor())


@pytest.mark.parametrize("beyond", [0.0, 1e-4, 9.0])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_pixels_are_those_of_dali(seed, beyond):
    given = step(40, seed, beyond)
    (frames,) = decoded(given)
    error = (frames.int() - by_dali(*given).int()).abs()
    assert error.max() <= 1
    assert error.float().mean() < 0.25


def test_no_thread_group_or_depth_changes_a_pixel():
    steps = [step(count, seed) for seed, count in enumerate((5 * TOGETHER + 3, 1, TOGETHER))]
    plain = decoded(*steps)
    for threads, prefetch in ((3, 1), (1, 2), (2, 5)):
        for one, other in zip(decoded(*steps, threads=threads, prefetch=prefetch), plain, strict=True):
            assert torch.equal(one, other)
    alone = [decoded(([file], start[None], end[None]))[0] for file, start, end in zip(*steps[0], strict=True)]
    assert torch.equal(torch.cat(alone), plain[0])


def test_frames_stay_valid_while_they_are_held():
    steps = [step(9, seed) for seed in range(4)]
    frames = decoded(*steps, prefetch=2)
    assert all(torch.equal(one, decoded(given)[0]) for one, given in zip(frames, steps, strict=True))


@pytest.mark.parametrize("damage", ["no header", "no picture"])
def test_a_packet_that_is_no_jpeg_is_an_error(damage):
    packets, start, end = step(3, 0)
    # 20 bytes end within the header. The marker FF DA ends the header, and the data of the picture begin after it.
    length = 20 if damage == "no header" else packets[1].tobytes().index(b"\xff\xda")
    packets[1] = packets[1][:length]
    with pytest.raises(RuntimeError, match=r"nvImageCodec cannot (read the header|decode)"):
        decoded((packets, start, end))
