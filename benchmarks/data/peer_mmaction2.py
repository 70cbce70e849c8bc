"""A server that runs MMAction2's own training pipeline of RGBPoseConv3D in the environment that peer.py makes.

It reads requests from standard input and writes answers to standard output, each as one line of JSON. It imports
nothing of Duet.
"""

import json
import os
import random
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

# The joints of the left and right side of the body, from MMAction2's rgbpose_conv3d.py.
LEFT, RIGHT = [1, 3, 5, 7, 9, 11, 13, 15], [2, 4, 6, 8, 10, 12, 14, 16]
HEATMAP = "GeneratePoseTarget"


def pipeline(frames: dict[str, int], sigma: float, side: int) -> list[dict[str, Any]]:
    """Return the published training transforms, without those that run on the GPU.

    frames: the number of frames by stream; side: 224 pixels, or less in a toy run.
    Source: MMAction2's rgbpose_conv3d.py (docs/sources.md, "Training samples").
    """
    return [
        {"type": "MMUniformSampleFrames", "clip_len": frames, "num_clips": 1},
        {"type": "MMDecode"},
        {"type": "MMCompact", "hw_ratio": 1.0, "allow_imgpad": True},
        {"type": "Resize", "scale": (256, 256), "keep_ratio": False},
        {"type": "RandomResizedCrop", "area_range": (0.56, 1.0)},
        {"type": "Resize", "scale": (side, side), "keep_ratio": False},
        {"type": "Flip", "flip_ratio": 0.5, "left_kp": LEFT, "right_kp": RIGHT},
        {
            **{"type": HEATMAP, "sigma": sigma, "use_score": True, "with_kp": True, "with_limb": False},
            "scaling": 0.25,
        },
        {"type": "FormatShape", "input_format": "NCTHW"},
        {"type": "PackActionInputs", "collect_keys": ("imgs", "heatmap_imgs")},
    ]


class Peer:
    """Answers each request by calling the method that the request names. The first request must be `open`."""

    def open(self, annotations: str, videos: str, split: str, frames: dict[str, int], sigma: float, side: int) -> dict:
        """Read the annotations and build the transforms. Returns the names of the clips."""
        self.dataset = import_module("mmaction.datasets").PoseDataset(
            ann_file=annotations, pipeline=pipeline(frames, sigma, side), split=split, data_prefix={"video": videos}
        )
        self.frames, self.transforms = frames, self.dataset.pipeline.transforms
        return {"clips": [Path(self.dataset.get_data_info(i)["frame_dir"]).name for i in range(len(self.dataset))]}

    def indices(self, clip: int, seed: int) -> dict:
        """Return the numbers of the frames that MMAction2 draws after numpy.random.seed(seed)."""
        np.random.seed(seed)
        drawn = self.transforms[0](self.dataset.get_data_info(clip) | {"modality": list(self.frames)})
        return {stream: np.ravel(drawn[f"{stream}_inds"]).tolist() for stream in self.frames}

    def draw(self, clip: int, frames: dict[str, list[int]], crop: list[int], flip: bool, out: str, whole: bool) -> dict:
        """Make a clip with these random choices, and write its images, heatmap, joints and scores to the file `out`.

        With `whole`, frames are converted to RGB with exact rounding. Without it, decord's faster conversion is used,
        which makes frames 1.1 grey levels darker.
        """
        info = self.dataset.get_data_info(clip) | {"modality": list(frames), "num_clips": 1, "clip_len": self.frames}
        info |= {f"{stream}_inds": np.array(numbers, np.int32) for stream, numbers in frames.items()}
        arrays = {}
        for transform in self.transforms[1:]:
            name = type(transform).__name__
            if name == "RandomResizedCrop":
                transform.get_crop_bbox = lambda *_: tuple(crop)
            if name == "Flip":
                transform.flip_ratio = float(flip)
            if name == HEATMAP:
                arrays |= {key: info[key].copy() for key in ("keypoint", "keypoint_score")}
            info = transform(info)
            if name == "MMDecode" and whole:
                info["imgs"] = exact_rgb(info["filename"], frames["RGB"])
            if name == "RandomResizedCrop":
                del transform.get_crop_bbox
            if name == "Flip":
                transform.flip_ratio = 0.5
        inputs = info["inputs"]
        np.savez(out, imgs=inputs["imgs"].numpy(), heatmap=inputs["heatmap_imgs"].numpy(), **arrays)
        return {}

    def run(self, clips: list[int], seed: int) -> dict:
        """Run the pipeline over these clips. Returns wall-clock seconds, CPU seconds, and seconds of each transform."""
        np.random.seed(seed)
        random.seed(seed)
        stages = {f"{number}_{type(transform).__name__}": 0.0 for number, transform in enumerate(self.transforms)}
        before = time.perf_counter(), time.process_time()
        for clip in clips:
            info = self.dataset.get_data_info(clip)
            for stage, transform in zip(stages, self.transforms, strict=True):
                start = time.perf_counter()
                info = transform(info)
                stages[stage] += time.perf_counter() - start
        return {
            "seconds": time.perf_counter() - before[0],
            "cpu_seconds": time.process_time() - before[1],
            "stages": stages,
        }


def exact_rgb(video: str, numbers: list[int]) -> list[np.ndarray]:
    """Decode frames to RGB with FFmpeg's exact conversion (BT.601, limited range)."""
    av, graph = import_module("av"), import_module("av.filter").Graph()
    with av.open(video) as container:
        source = graph.add_buffer(template=container.streams.video[0])
        scale = graph.add("scale", "flags=bilinear+accurate_rnd+full_chroma_int:in_color_matrix=bt601:in_range=limited")
        graph.link_nodes(source, scale, graph.add("format", "rgb24"), graph.add("buffersink")).configure()
        frames = {}
        for number, frame in enumerate(container.decode(video=0)):
            frame.pts = None
            graph.push(frame)
            picture = graph.pull()
            if number in numbers:
                frames[number] = picture.to_ndarray()
    return [frames[number] for number in numbers]


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # the output of libraries must not mix with the answers
    import_module("cv2").setNumThreads(0)
    import_module("torch").set_num_threads(1)
    import_module("mmengine.registry").init_default_scope("mmaction")
    peer = Peer()
    for line in sys.stdin:
        request = json.loads(line)
        print(json.dumps(getattr(peer, request.pop("do"))(**request)), file=answers, flush=True)


if __name__ == "__main__":
    main()
