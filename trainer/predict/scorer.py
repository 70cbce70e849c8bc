"""Scores windows of a video with a network, and computes where in a window the network looked."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from kernels.program import UserError
from pipelines.batch import Batch
from pipelines.loader import Loader
from pipelines.plan import ClipPlan
from pipelines.videos.windows import WindowFrames
from trainer.config import Experiment
from trainer.metrics import fused_scores, score_batch
from trainer.predict.video import Explanation
from trainer.report.grad_cam import where_it_looked
from trainer.runtime.precision import Precision


@dataclass(frozen=True, slots=True)
class Scorer:
    """A network that scores windows. `forward` is the network, compiled or not. explains: whether to use Grad-CAM."""

    experiment: Experiment
    network: nn.Module
    forward: nn.Module
    precision: Precision
    explains: bool = False

    def loader(self, frames: WindowFrames) -> Loader:
        """A loader whose batches contain one row of `frames.table` each."""
        return Loader(
            table=frames.table,
            frames=frames,
            rows=np.arange(len(frames.table)),
            config=self.experiment.clip,
            # a coarse map with one class is enough, because the labels of windows are unknown and set to 0
            coarse_map=(0,),
            train=False,
            batch_size=1,
            device=self.precision.device,
            dtype=self.precision.dtype,
            streams=self.experiment.streams,
        )

    @torch.no_grad()
    def score(self, batch: Batch) -> dict[str, Tensor]:
        """Probabilities [K] of each stream, on the CPU. `fused` is the mean of the RGB and pose probabilities.

        Raises UserError if they are not finite.
        """
        with self.precision():
            output = self.forward(batch.rgb, batch.heatmap)
        scores = score_batch(batch, output.logits).probability
        if not all(bool(score.isfinite().all()) for score in scores.values()):
            raise UserError("the network computes no finite scores for this video: name another file with --checkpoint")
        streams = {name: scores[name] for name in ("rgb", "pose", "sum") if name in scores}
        if {"rgb", "pose"} <= streams.keys():
            streams = {"fused": fused_scores(streams["rgb"], streams["pose"], (0.5, 0.5))} | streams
        return {name: score[0].float().cpu() for name, score in streams.items()}

    def explain(
        self, batch: Batch, plan: ClipPlan, start: int, size: tuple[int, int], scores: dict[str, Tensor]
    ) -> Explanation | None:
        """Where the network looked to choose the best class of a window, or None without --explain.

        plan: the plan of the batch that contains the window. start: the number of the window's first frame in the
        video. size: (width, height) of the image to which the plan's box belongs. scores: what `score` has returned for
        the window.
        """
        if not self.explains:
            return None
        label = next(iter(scores.values())).argmax().reshape(1)
        with self.precision():
            maps = where_it_looked(self.network, batch, label)
        frames = {"rgb": start + plan.rgb_frames[0], "pose": start + plan.pose_frames[0]}
        left, top, right, bottom = plan.box[0].tolist()
        return Explanation(
            maps={stream: each[0].cpu().numpy() for stream, each in maps.items()},
            frames={stream: frames[stream] for stream in maps},
            box=(left / size[0], top / size[1], right / size[0], bottom / size[1]),
        )


def on_cpu(batch: Batch) -> Batch:
    """A copy of the batch on the CPU. A copy is needed because the decoder reuses the batch's memory."""
    return replace(batch, **{name: tensor.to("cpu", copy=True) for name, tensor in batch.tensors().items()})
