"""The formats of `python -m trainer export`: written, and read back as functions of clips."""

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

KEY = "duet"  # of the metadata: one JSON text
Format = Literal["onnx", "pt2", "safetensors"]
Inputs = dict[str, Tensor]
Score = Callable[..., dict[str, Tensor]]  # the inputs by name


class Scorer(nn.Module):
    """A network as its file has it: the streams' inputs, each [N, ...], to probabilities [N, K].

    score_fused is the mean of both streams, as `predict` has it; score_sum EPAM-Net's published score. (ONNX wants
    names of outputs that are no names of inputs.)
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        # torch.export writes no tensor whole that is channels_last.
        self.network = network.to(memory_format=torch.contiguous_format)  # pyright: ignore[reportCallIssue]

    def forward(self, rgb: Tensor | None = None, heatmap: Tensor | None = None) -> dict[str, Tensor]:
        logits = self.network(rgb, heatmap).logits
        scores = {f"score_{name}": values.float().softmax(1) for name, values in logits.items()}
        if "rgb" in logits and "pose" in logits:  # torch 2.11 traces no comparison of sets
            return {"score_fused": (scores["score_rgb"] + scores["score_pose"]) / 2} | scores
        return scores


def check_extra(chosen: Format) -> None:
    """Raise UserError where the format's packages are not installed."""
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]
    if chosen == "onnx" and missing:
        raise UserError(f"--format onnx needs {' and '.join(missing)}: pip install -e '.[export]'")


def write_pt2(scorer: Scorer, inputs: Inputs, any_side: bool, told: str, path: Path) -> None:
    exported = traced(scorer, inputs, any_side)
    exported.example_inputs = None  # twice the size of a small network
    content = io.BytesIO()  # a disk that is full ends the process in torch's own writer of files
    torch.export.save(exported, content, extra_files={f"{KEY}.json": told})
    path.write_bytes(content.getbuffer())


def read_pt2(path: Path) -> Score:
    return torch.export.load(path).module()


def write_onnx(scorer: Scorer, inputs: Inputs, any_side: bool, told: str, path: Path) -> None:
    exported = traced(scorer, inputs, any_side)
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)  # it says which operators of torchvision it will not know
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(exported, dynamo=True, output_names=list(scorer(**inputs)), verbose=False)
    finally:
        log.setLevel(level)
    assert program is not None
    program.model.metadata_props[KEY] = told
    program.save(path)


def read_onnx(path: Path) -> Score:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def score(**inputs: Tensor) -> dict[str, Tensor]:
        found = session.run(None, {name: tensor.numpy() for name, tensor in inputs.items()})
        names = [output.name for output in session.get_outputs()]
        return {name: torch.from_numpy(array) for name, array in zip(names, found, strict=True)}

    return score


def write_tensors(network: nn.Module, told: str, path: Path) -> None:
    """Native tensors, which --init, --checkpoint and models.weights take, with the recipe beside them."""
    state = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
    save_file(state, path, metadata={"format": "pt", KEY: told})


def traced(scorer: Scorer, inputs: Inputs, any_side: bool) -> ExportedProgram:
    """The graph of any number of clips and, with `any_side`, of square frames and heatmaps of any size."""
    axes = {"rgb": (2, 3), "heatmap": (3, 4)}
    batch, shapes = Dim("batch"), {}
    for name in inputs:
        shapes[name] = {0: batch} | ({axis: Dim.DYNAMIC for axis in axes[name]} if any_side else {})
    with torch.no_grad():
        # strict: what Python does with len(tensor) is traced too.
        return torch.export.export(scorer, (), inputs, dynamic_shapes=shapes, strict=True)
