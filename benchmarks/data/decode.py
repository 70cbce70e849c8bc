"""Measures how many JPEG frames per second our DALI graph decodes.

On a GPU, the JPEG engine decodes a share of the frames, and the CUDA cores decode the others. The speed is measured for
several values of this share.

Needs DALI.
"""

import time
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction

import av
import numpy as np
import torch

from benchmarks.harness import Result, Target, spread
from pipelines.backends import Backends
from pipelines.dali import FrameDecoder

# Shares of the frames that the JPEG engine decodes.
LOADS = (0.75, 0.0, 0.5, 0.65, 0.9, 1.0)
SIDES = (256, 288)
QUALITY = 3  # the default of ClipConfig.quality


def measure(target: Target) -> Iterator[Result]:
    num_images, out = (4, 32) if target.toy else (512, 224)
    packets = {side: jpegs(8 if target.toy else 64, side) for side in ((48,) if target.toy else SIDES)}

    def decoder(side: int, device: torch.device, load: float) -> FrameDecoder:
        step = [packets[side][number % len(packets[side])] for number in range(num_images)]
        start = np.zeros((num_images, 2), np.float32)
        end = np.full((num_images, 2), side * 0.8, np.float32)
        return FrameDecoder(
            lambda _: (step, start, end),
            num_images,
            out,
            device,
            replace(Backends.fastest(device, _fail), hw_decoder_load=load),
            threads=8,
            prefetch=2,
        )

    on_gpu = target.device.type == "cuda"
    if on_gpu:
        yield (
            "pixels",
            _differences(decoder(SIDES[0], target.device, LOADS[0]), decoder(SIDES[0], torch.device("cpu"), 0)),
        )
    for load in LOADS if on_gpu else (0.0,):
        for side, jpeg_packets in packets.items():
            samples = _frames_per_second(decoder(side, target.device, load), num_images, target)
            kib = float(np.mean([packet.size for packet in jpeg_packets])) / 1024
            key = f"mixed_load_{load}_{side}px" if on_gpu else f"cpu_{side}px"
            yield key, {"frames_per_s": spread(samples), "out": out, "kib_per_frame": kib}


def _fail(sentence: str) -> None:
    """End the benchmark instead of measuring another decoder."""
    raise RuntimeError(sentence)


def jpegs(count: int, side: int) -> list[np.ndarray]:
    """Encode `count` frames of a moving texture with camera noise as JPEG, with the settings of `prepare`."""
    codec = av.CodecContext.create("mjpeg", "w")
    assert isinstance(codec, av.VideoCodecContext)
    codec.width = codec.height = side
    codec.pix_fmt, codec.time_base, codec.thread_count = "yuvj420p", Fraction(1, 30), 1
    codec.options = {"qmin": str(QUALITY), "qmax": str(QUALITY)}
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (12, 12, 3)).astype(np.float32)
    texture = torch.nn.functional.interpolate(
        torch.from_numpy(coarse).permute(2, 0, 1)[None], size=(side, side), mode="bicubic", align_corners=False
    )
    picture = texture[0].permute(1, 2, 0).numpy()
    packets = []
    for number in range(count):
        noisy = np.roll(picture, 2 * number, axis=1) + rng.normal(0, 3, picture.shape)
        frame = av.VideoFrame.from_ndarray(noisy.clip(0, 255).astype(np.uint8), format="rgb24").reformat(
            format="yuvj420p"
        )
        frame.pts = number
        packets += [np.frombuffer(bytes(packet), np.uint8) for packet in codec.encode(frame)]
    return packets


def _frames_per_second(decoder: FrameDecoder, num_images: int, target: Target) -> np.ndarray:
    """Return the frames per second of each batch except the first four, which were decoded in advance."""
    samples, end = [], np.inf
    for number in range(10_000):
        start = time.perf_counter()
        decoder.next()[0, 0, 0, 0].item()  # waits for the batch
        now = time.perf_counter()
        if number < 4:
            end = now + (0 if target.toy else 2)
            continue
        samples.append(num_images / (now - start))
        if now >= end and len(samples) >= 3:
            break
    return np.array(samples)


def _differences(on_gpu: FrameDecoder, on_cpu: FrameDecoder) -> dict[str, float]:
    """Return the differences between the frames decoded on GPU and CPU, in grey levels."""
    difference = (on_gpu.next().cpu().int() - on_cpu.next().cpu().int()).abs()
    return {"max": float(difference.max()), "mean": float(difference.float().mean()), "n": difference.shape[0]}
