"""Weight files that are hostile, broken, or made for another network are refused in one sentence and run no code."""

import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch

from models.weights.files import WeightsError, read_file
from tests.models.command import main
from tests.models.layouts import LAYOUTS, assert_byte_equal, filled, save


class Bomb:
    """An object that creates a file if it is unpickled without restrictions."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def test_code_in_a_file_never_runs(tmp_path, capsys):
    torch.save({"state_dict": filled(LAYOUTS["SlowOnly pose"]()), "hook": Bomb(tmp_path / "ran")}, tmp_path / "x.pth")
    assert main(["inspect", str(tmp_path / "x.pth")]) == 2
    assert not (tmp_path / "ran").exists()
    assert "save only the state_dict" in capsys.readouterr().err


def test_the_log_in_a_trainers_checkpoint_is_skipped(tmp_path, monkeypatch):
    module = types.ModuleType("mmengine.logging.history_buffer")

    class HistoryBuffer:
        def __init__(self) -> None:
            self.history, self.latest = np.arange(3.0), np.float64(0.5)

    HistoryBuffer.__module__, HistoryBuffer.__qualname__ = module.__name__, "HistoryBuffer"
    module.HistoryBuffer = HistoryBuffer
    for name in ("mmengine", "mmengine.logging"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    source = filled(LAYOUTS["SlowOnly pose"]())
    torch.save({"state_dict": source, "message_hub": {"log": HistoryBuffer()}}, tmp_path / "epoch_3.pth")
    monkeypatch.undo()
    assert_byte_equal(read_file(tmp_path / "epoch_3.pth"), source)


def broken(path: Path, kind: str) -> Path:
    """Return the path of a file that cannot be used. `kind` names the reason."""
    state = filled(LAYOUTS["SlowOnly pose"]())
    file = path / f"{kind}.pth"
    match kind:
        case "absent":
            return file
        case "empty":
            file.write_bytes(b"")
        case "text":
            file.write_text("<html>404</html>")
        case "cut":
            file.write_bytes(save(file, state).read_bytes()[:5000])
        case "cut safetensors":
            file = path / "cut.safetensors"
            file.write_bytes(b"\x10\x00\x00\x00\x00\x00\x00\x00{}")
        case "tensor":
            torch.save(torch.zeros(3), file)
        case "foreign":
            save(file, {"encoder.weight": torch.zeros(3, 3)})
        case "unknown key":
            save(file, state | {"backbone.layer1.0.conv4.conv.weight": torch.zeros(1)})
        case "unknown head":
            save(file, state | {"neck.weight": torch.zeros(1)})
        case "missing key":
            del state["backbone.layer2.0.conv2.bn.bias"]
            save(file, state)
        case "no stage":
            save(file, {name: t for name, t in state.items() if ".layer1." not in name})
        case "shape":
            save(file, state | {"backbone.layer1.1.conv2.bn.weight": torch.zeros(7)})
        case "volume":
            save(file, state | {"backbone.layer1.1.conv2.conv.weight": torch.zeros(4, 4, 3, 3, 3)})
    return file


SENTENCES = {
    "absent": "there is no file",
    "empty": "damaged or not a checkpoint",
    "text": "is not a checkpoint of tensors",
    "cut": "damaged or not a checkpoint",
    "cut safetensors": "not a complete safetensors file",
    "tensor": "contains no named tensors",
    "foreign": r"has an unknown layout \(it begins with encoder.weight\)",
    "unknown key": "1 unknown: backbone.layer1.0.conv4.conv.weight",
    "unknown head": "1 unknown: neck.weight",
    "missing key": "1 missing: backbone.layer2.0.conv2.bn.bias",
    "no stage": "layer1 or a later stage is missing",
    "shape": r"1 of another shape: backbone.layer1.1.conv2.bn.weight \(7,\), not \(8,\)",
    "volume": "spans both time and space",
}


@pytest.mark.parametrize("kind", SENTENCES)
def test_a_bad_file_is_refused_in_one_sentence(tmp_path, capsys, kind):
    path = broken(tmp_path, kind)
    out = tmp_path / "out.safetensors"
    assert main(["convert", str(path), str(out)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    with pytest.raises(WeightsError, match=SENTENCES[kind]):
        raise WeightsError(error)
    assert not out.exists()


def test_inspect_lists_what_is_wrong(tmp_path, capsys):
    assert main(["inspect", str(broken(tmp_path, "unknown head"))]) == 2
    shown = capsys.readouterr().out
    assert "mmaction2's SlowOnly pose, 11 classes, 5 joints" in shown
    assert "1 unknown: neck.weight" in shown


def test_places_that_cannot_be_written_are_refused(tmp_path, capsys):
    path = str(save(tmp_path / "pose.pth", filled(LAYOUTS["SlowOnly pose"]())))
    for out, extra, sentence in (
        (path, [], "is an input of this command"),
        (str(tmp_path / "x.onnx"), [], "has an unknown ending: give a name that ends in .safetensors, .pth"),
        (str(tmp_path / "no" / "x.pth"), [], "could not be written"),
        (str(tmp_path / "x.pth"), ["--to", "torchvision"], "for the RGB stream alone"),
        (
            str(tmp_path / "x.pth"),
            ["--to", "slowfast"],
            "SlowOnly cannot be written in the layout of slowfast: choose --to mmaction2 or torchvision",
        ),
    ):
        assert main(["convert", path, out, *extra]) == 2
        assert sentence in capsys.readouterr().err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["pose.pth"]
