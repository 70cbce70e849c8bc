"""Writes and reads the file formats of `python -m trainer export`.

A file is read back as a function that computes scores.
"""

import importlib.util
import io
import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from kernels.program import UserError
from trainer.snapshots.choice import METADATA as KEY

Format = Literal["onnx", "pt2", "safetensors"]
Inputs = dict[str, Tensor]
Score = Callable[..., dict[str, Tensor]]  # a function that takes inputs as keyword arguments and returns scores


class Scorer(nn.Module):
    """The network in the form that is exported: takes the streams' inputs [N, ...], and returns probabilities [N, K].

    score_fused is the mean of both streams' probabilities, as in `predict`. score_sum is EPAM-Net's published score.
    The names of outputs start with score_ because ONNX does not allow an output to have the name of an input, such as
    rgb.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        # Contiguous, because torch.export does not save channels_last tensors completely.
        self.network = network.to(memory_format=torch.contiguous_format)  # pyright: ignore[reportCallIssue]

    def forward(self, rgb: Tensor | None = None, heatmap: Tensor | None = None) -> dict[str, Tensor]:
        logits = self.network(rgb, heatmap).logits
        scores = {f"score_{name}": values.float().softmax(1) for name, values in logits.items()}
        if "rgb" in logits and "pose" in logits:  # written like this because torch 2.11 cannot trace set comparisons
            return {"score_fused": (scores["score_rgb"] + scores["score_pose"]) / 2} | scores
        return scores


def check_extra(chosen: Format) -> None:
    """Raise UserError if the packages that the format needs are not installed."""
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]
    if chosen == "onnx" and missing:
        raise UserError(f"--format onnx needs {' and '.join(missing)}: pip install -e '.[export]'")


def write_pt2(scorer: Scorer, inputs: Inputs, any_side: bool, metadata: str, path: Path) -> None:
    exported = traced(scorer, inputs, any_side)
    exported.example_inputs = None  # not saved, because they can be twice as large as the network
    content = io.BytesIO()  # saved in memory first, because on a full disk torch's file writer would kill the process
    torch.export.save(exported, content, extra_files={f"{KEY}.json": metadata})
    path.write_bytes(content.getbuffer())


def read_pt2(path: Path) -> Score:
    return torch.export.load(path).module()


def write_onnx(scorer: Scorer, inputs: Inputs, any_side: bool, metadata: str, path: Path) -> None:
    exported = traced(scorer, inputs, any_side)
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)  # hides warnings about operators of torchvision, which our networks do not use
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(exported, dynamo=True, output_names=list(scorer(**inputs)), verbose=False)
    finally:
        log.setLevel(level)
    assert program is not None
    program.model.metadata_props[KEY] = metadata
    program.save(path)


def read_onnx(path: Path) -> Score:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def score(**inputs: Tensor) -> dict[str, Tensor]:
        arrays = session.run(None, {name: tensor.numpy() for name, tensor in inputs.items()})
        names = [output.name for output in session.get_outputs()]
        return {name: torch.from_numpy(array) for name, array in zip(names, arrays, strict=True)}

    return score


def write_tensors(network: nn.Module, metadata: str, path: Path) -> None:
    """Write the weights in the native layout, which --init, --checkpoint and models.weights can read."""
    state = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
    save_file(state, path, metadata={"format": "pt", KEY: metadata})


def traced(scorer: Scorer, inputs: Inputs, any_side: bool) -> ExportedProgram:
    """The exported graph. It takes any number of clips and, with `any_side`, frames and heatmaps of any side length."""
    axes = {"rgb": (2, 3), "heatmap": (3, 4)}
    batch, shapes = Dim("batch"), {}
    for name in inputs:
        shapes[name] = {0: batch} | ({axis: Dim.DYNAMIC for axis in axes[name]} if any_side else {})
    with torch.no_grad():
        # strict=True traces the Python bytecode, which is needed for calls such as len(tensor).
        return torch.export.export(scorer, (), inputs, dynamic_shapes=shapes, strict=True)
