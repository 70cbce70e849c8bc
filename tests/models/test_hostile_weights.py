"""Checkpoints are refused if they need far more memory or time than their size suggests, or contain NaN or infinity."""

import collections
import io
import json
import os
import pickle
import struct
import zipfile
from pathlib import Path

import pytest
import torch
from torch._utils import _rebuild_tensor_v2

from kernels.program import UserError
from models.weights.files import SnapshotError, WeightsError, load, read_file, save, write_file
from models.weights.layouts import read_weights
from tests.models.command import main
from tests.models.layouts import LAYOUTS, assert_byte_equal, filled
from tests.models.layouts import save as save_weights
from tests.trainer.test_snapshot_files import seal


def entries() -> dict[str, bytes]:
    """Return the zip entries of a checkpoint with one tensor of four numbers."""
    file = io.BytesIO()
    torch.save({"state_dict": {"w": torch.ones(4)}}, file)
    with zipfile.ZipFile(file) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def write(path: Path, content: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, value in content.items():
            archive.writestr(name, value)
    return path


class Storage:
    """A placeholder for the storage of a tensor in a forged pickle."""


class Tensor:
    def __init__(self, *form):
        self.form = form

    def __reduce__(self):
        return _rebuild_tensor_v2, (Storage(), *self.form, False, collections.OrderedDict())


def forged(path: Path, content: object, count: int = 4) -> Path:
    """Write a checkpoint whose pickle is `content`, and in which each Storage claims to have `count` numbers."""

    class Pickler(pickle.Pickler):
        def persistent_id(self, obj):
            return ("storage", torch.FloatStorage, "0", "cpu", count) if isinstance(obj, Storage) else None

    file = io.BytesIO()
    Pickler(file, 2).dump(content)
    return write(path, {name: file.getvalue() if "data.pkl" in name else value for name, value in entries().items()})


def with_pickle(path: Path, content: bytes) -> Path:
    return write(path, {name: content if "data.pkl" in name else value for name, value in entries().items()})


DOUBLED = b"K\x01q\x00" + b"".join(b"h%ch%c\x86q%c" % (i, i, i + 1) for i in range(45))
FORMS = {
    "stride of 0": (0, (1 << 20, 1 << 20), (0, 0)),
    "overlapping rows": (0, (3, 3), (0, 1)),
    "beyond its storage": (0, (1 << 20,), (1,)),
    "offset beyond its storage": (4, (1,), (1,)),
    "negative size": (0, (-4,), (1,)),
    "negative stride": (0, (2,), (-1,)),
    "size of another type": (0, (4.0,), (1,)),
    "strides that are missing": (0, (2, 2), (1,)),
}
PICKLES = {
    "key whose hash never ends": b"\x80\x02}" + DOUBLED + b"K\x00s.",
    "key whose hash never ends, in an OrderedDict": (
        b"\x80\x02ccollections\nOrderedDict\n]](" + DOUBLED + b"K\x00ea\x85R."
    ),
    "tensor type that is called": b"\x80\x02ctorch\nFloatTensor\nJ\x00\x00\x00\x7f\x85\x81.",
    "bytearray of a gigabyte": b"\x80\x02c__builtin__\nbytearray\nJ\x00\x00\x00\x40\x85R.",
    "Parameter that is called": b"\x80\x02ctorch.nn.parameter\nParameter\n)R.",
    "opcode of another protocol": b"\x80\x04\x8e" + struct.pack("<Q", 1 << 40) + b"x.",
    "empty stack": b"\x80\x02a.",
    "no end": b"\x80\x02]",
    "text": b"not a pickle",
}


def refusal(path: Path) -> str:
    """Assert that both readers refuse a file, and return the message of the first reader.

    The second reader accepts only files with a trailer, so a trailer with the right digest is appended for it.
    """
    with pytest.raises(WeightsError, match=path.name) as refused:
        read_file(path)
    archive = path.read_bytes()
    if archive.endswith(b"\0\0"):
        seal(path, archive)
        with pytest.raises(SnapshotError, match=path.name):
            load(path)
    return str(refused.value)


@pytest.mark.parametrize("form", FORMS)
def test_a_tensor_has_no_more_numbers_than_are_stored(tmp_path, form):
    assert "a tensor " in refusal(forged(tmp_path / "a.pth", {"state_dict": {"w": Tensor(*FORMS[form])}}))


def test_valid_views_are_read(tmp_path):
    base = torch.arange(24.0)
    state = {"turned": base.view(4, 6).t(), "part": base[3:9], "one": base[5], "none": base[:0].view(0, 7)}
    state["last"] = torch.ones(2, 3, 4, 5).contiguous(memory_format=torch.channels_last)
    state["parameter"] = torch.nn.Parameter(torch.ones(2))
    for legacy in (False, True):
        torch.save({"model_state": state}, tmp_path / "a.pyth", _use_new_zipfile_serialization=not legacy)
        assert_byte_equal(read_file(tmp_path / "a.pyth"), {name: value.detach() for name, value in state.items()})


def test_a_storage_claims_no_more_than_is_stored(tmp_path):
    path = forged(tmp_path / "a.pth", {"state_dict": {"w": Tensor(0, (4,), (1,))}}, 1 << 40)
    assert "claims 4,398,046,511,104 bytes, but 16 are stored" in refusal(path)
    torch.save({"w": torch.ones(3)}, tmp_path / "b.pth", _use_new_zipfile_serialization=False)
    content = (tmp_path / "b.pth").read_bytes()
    (tmp_path / "b.pth").write_bytes(content.replace(b"K\x03Ntq", b"J\xff\xff\xff\x7fNtq"))
    assert "claim" in refusal(tmp_path / "b.pth")


def test_tensors_may_share_their_content_only_a_few_times(tmp_path):
    one = torch.ones(300_000)
    torch.save({f"w{i}": one[:] for i in range(4)}, tmp_path / "a.pth")
    assert len(read_file(tmp_path / "a.pth")) == 4
    torch.save({f"w{i}": one[:] for i in range(40)}, tmp_path / "a.pth")
    assert "share their content so often" in refusal(tmp_path / "a.pth")


@pytest.mark.parametrize("kind", PICKLES)
def test_a_pickle_that_costs_more_than_its_size_is_refused(tmp_path, kind):
    refusal(with_pickle(tmp_path / "a.pth", PICKLES[kind]))


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
@pytest.mark.parametrize("kind", ["sparse", "quantized", "meta", "complex", "float8"])
def test_tensors_of_other_kinds_are_refused(tmp_path, kind):
    tensors = {
        "sparse": lambda: torch.eye(4).to_sparse(),
        "quantized": lambda: torch.quantize_per_tensor(torch.ones(4), 0.1, 0, torch.qint8),
        "meta": lambda: torch.empty(1 << 20, 1 << 20, device="meta"),
        "complex": lambda: torch.ones(4, dtype=torch.complex64),
        "float8": lambda: torch.ones(4).to(torch.float8_e4m3fn),
    }
    torch.save({"w": tensors[kind]()}, tmp_path / "a.pth")
    with pytest.raises(WeightsError, match=r"a\.pth"):
        read_file(tmp_path / "a.pth")


def test_archives_that_unpack_to_far_more_are_refused(tmp_path):
    for entry in ("data.pkl", "data/0"):
        content = {name: bytes(32 << 20) if name.endswith(entry) else value for name, value in entries().items()}
        assert "more than 100 times as many" in refusal(write(tmp_path / "a.pth", content, zipfile.ZIP_DEFLATED))


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_entries_with_the_same_name_or_place_are_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.pth", "w") as archive:
        for name, value in [*entries().items(), *entries().items()]:
            archive.writestr(name, value)
    assert "the same name" in refusal(tmp_path / "a.pth")
    content = write(tmp_path / "b.pth", {**entries(), "archive/data/1": bytes(16)}).read_bytes()
    first = content.index(b"PK\x01\x02")
    places = [place for place in range(first, len(content)) if content[place : place + 4] == b"PK\x01\x02"]
    offset = slice(places[1] + 42, places[1] + 46)  # bytes of the field in which the second entry claims its offset
    (tmp_path / "b.pth").write_bytes(content[: offset.start] + bytes(4) + content[offset.stop :])
    assert "overlap" in refusal(tmp_path / "b.pth")


def safetensors(path: Path, header: bytes, data: bytes = b"", length: int | None = None) -> Path:
    path.write_bytes(struct.pack("<Q", len(header) if length is None else length) + header + data)
    return path


def test_safetensors_that_claim_too_much_are_refused(tmp_path):
    path = tmp_path / "a.safetensors"
    entry = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    far = json.dumps({"w": entry | {"shape": [1 << 40], "data_offsets": [0, 1 << 42]}}).encode()
    overlapping = json.dumps({"v": entry, "w": entry}).encode()
    twice = b'{"w":' + json.dumps(entry).encode() + b',"w":' + json.dumps(entry).encode() + b"}"
    read_file(safetensors(path, json.dumps({"w": entry}).encode(), bytes(4)))
    for header, data in ((far, bytes(4)), (overlapping, bytes(4)), (twice, bytes(4)), (b"[" * 100_000, b"")):
        assert "not a complete safetensors file" in refusal(safetensors(path, header, data))
    assert "its header has" in refusal(safetensors(path, bytes(100), b"", 1 << 62))


def test_pipes_devices_and_folders_are_refused_before_they_are_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.pth")
    (tmp_path / "folder.safetensors").mkdir()
    for path, what in (
        (tmp_path / "pipe.pth", "is a pipe, not a file"),
        (tmp_path / "folder.safetensors", "is a folder, not a file"),
        (Path("/dev/zero"), "is a device, not a file"),
    ):
        for read in (read_file, load):
            with pytest.raises(UserError, match=what):
                read(path)


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("ending", [".pth", ".safetensors"])
def test_weights_that_are_not_finite_are_named(tmp_path, capsys, ending, number):
    state = filled(LAYOUTS["SlowOnly pose"]())
    state["backbone.layer1.0.conv1.bn.running_var"][1] = number
    path = tmp_path / f"a{ending}"
    write_file(path, state)
    with pytest.raises(WeightsError, match=r"1 of \d+ tensors contain NaN or infinity: \S*conv1.bn.running_var"):
        read_weights(path)
    assert main(["inspect", str(path)]) == 2
    assert main(["convert", str(path), str(tmp_path / "b.pth")]) == 2
    assert main(["merge", str(path), str(path), str(tmp_path / "b.pth")]) == 2
    assert capsys.readouterr().err.count("NaN or infinity") == 3
    assert not (tmp_path / "b.pth").exists()


def test_a_snapshot_that_is_not_finite_is_refused(tmp_path):
    good, bad = {"w": torch.ones(3), "n": torch.tensor(3)}, {"w": torch.tensor([1, float("nan")])}
    momenta = [{"state": {0: {"momentum_buffer": state["w"]}}} for state in (good, bad)]
    whole = {"model": good, "averages": None, "optimizer": momenta[0]}
    for state in (whole, whole | {"optimizer": {"state": [1]}}, whole | {"optimizer": {"state": {0: 5}}}):
        save(tmp_path / "a.pth", state)
        load(tmp_path / "a.pth")
    for change in ({"model": bad}, {"averages": bad}, {"optimizer": momenta[1]}):
        save(tmp_path / "a.pth", whole | change)
        with pytest.raises(SnapshotError, match=r"training had diverged \(1 of 1 tensors"):
            load(tmp_path / "a.pth")


def test_names_from_a_file_cannot_draw_on_the_terminal(tmp_path, capsys):
    path = save_weights(tmp_path / "a.pth", filled(LAYOUTS["SlowOnly pose"]()) | {"\x1b[2Ja\udce9": torch.ones(1)})
    main(["inspect", str(path)])
    output = "".join(capsys.readouterr())
    assert "1 unknown: \\x1b[2Ja\\xe9" in output
    assert "\x1b" not in output
