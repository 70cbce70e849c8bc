"""Pickles that describe far more than they contain are refused in one sentence, within limits of time and memory."""

import collections
import os
import pickle
import signal
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.annotations.schema import AnnotationError
from pipelines.annotations.table import open_table
from tests.pipelines import annotated
from tests.programs import run

PLACE = "@@"  # in the pickle of a clip, `deep` replaces this text by deeply nested lists


def clip(name: Any, **fields: Any) -> dict[str, Any]:
    """Return a clip whose fields may have any values."""
    return annotated.clip("a") | {"frame_dir": name} | fields


def nested(value: Any, times: int) -> list:
    """Return nested lists that contain the value 2^times times, although there are only `times` lists."""
    for _ in range(times):
        value = [value, value]
    return value


def deep(field: str, depth: int = 100_000) -> bytes:
    """Return the pickle of a clip with lists nested `depth` deep in one field. pickle.dumps could not write it."""
    content = pickle.dumps([clip("a") | {field: PLACE}], 2)
    token = b"X\x02\x00\x00\x00@@"
    assert content.count(token) == 1
    return content.replace(token, b"]" * (depth + 1) + b"a" * depth)


def zeros(*shape: int) -> np.ndarray:
    return np.zeros(shape, np.float32)


BIG = zeros(1, 30_000, 17, 2)
FIELDS = ("frame_dir", "label", "total_frames", "img_shape", "keypoint", "keypoint_score")
CASES: dict[str, Any] = {
    **{f"{field} of 2^40 values": [clip("a") | {field: nested(1.0, 40)}] for field in FIELDS},
    **{f"{field} nested deep": deep(field) for field in FIELDS},
    "split of 2^40 names": {"split": {"a": [nested("a", 40)]}, "annotations": [clip("a")]},
    "rotation of 2^40 values": {"split": {}, "annotations": [clip("a")], "rotation": nested(1, 40)},
    "rotation that is an array": {"split": {}, "annotations": [clip("a")], "rotation": zeros(2)},
    "class names of 2^40 values": {"split": {}, "annotations": [clip("a")], "class_names": [nested("a", 40)]},
    "no people in 2^30 frames": [clip("a", keypoint=zeros(0, 1 << 30, 17, 2), total_frames=1 << 30)],
    "2^30 joints": [clip("a", keypoint=zeros(0, 6, 1 << 30, 2))],
    "one array for many clips": [
        clip(str(i), keypoint=BIG, keypoint_score=None, total_frames=30_000) for i in range(60)
    ],
    "name of 5,000,000 characters": [clip("n" * 5_000_000, label="x")],
    "two names of 5,000,000 characters": [clip("n" * 5_000_000)] * 2,
    "text as coordinates": [clip("a", keypoint=np.full((1, 6, 17, 2), "50"))],
    "image of 2^62 pixels": [clip("a", img_shape=(2**31 - 1, 2**31 - 1))],
    "two splits of one name": {"split": {1: ["a"], "1": []}, "annotations": [clip("a")]},
    "memo of 2^29 entries": b"\x80\x04Nr" + struct.pack("<I", 1 << 29) + b".",
    "bytes of a terabyte": b"\x80\x04\x8e" + struct.pack("<Q", 1 << 40) + b"x.",
    "bytearray of 4 GB": b"\x80\x05\x96" + struct.pack("<Q", 1 << 32) + b"x.",
}
BUSY = (  # the pickle encodes a long text 100,000 times, which would take about a minute
    b"\x80\x04\x8c\x07_codecs\x8c\x06encode\x93\x94X\x40\x42\x0f\x00" + b"x" * 1_000_000 + b"\x8c\x06latin1\x86\x94"
    b"00" + b"h\x00h\x01R0" * 100_000 + b"N."
)

MAKERS = {  # each of these pickles puts a key into a dict, or a member into a set
    "item of a dict": b"\x80\x04}%bNs.",
    "items of a dict": b"\x80\x04}(K\x05N%bNu.",
    "dict": b"\x80\x04(K\x05N%bNd.",
    "member of a set": b"\x80\x04\x8f(%b\x90.",
    "frozenset": b"\x80\x04(%b\x91.",
    "OrderedDict": b"\x80\x04\x8c\x0bcollections\x8c\x0bOrderedDict\x93](%bN\x86e\x85R.",
}


def refusal(folder: Path, content: Any) -> str:
    path = folder / "a.pkl"
    path.write_bytes(content if isinstance(content, bytes) else pickle.dumps(content, 4))
    with pytest.raises(AnnotationError) as refused:
        open_table(path, folder / "cache")
    sentence = str(refused.value)
    assert "a.pkl" in sentence
    assert len(sentence) < 1000
    assert sentence.isprintable()
    assert not list((folder / "cache").glob("*-v*"))
    return sentence


@pytest.mark.parametrize("case", CASES)
def test_content_of_any_size_in_a_small_file_is_refused(tmp_path, case):
    refusal(tmp_path, CASES[case])


@pytest.mark.parametrize("make", MAKERS)
def test_keys_that_take_long_to_hash_are_refused_before_they_are_hashed(tmp_path, make, build_here):
    """The keys and set members are a tuple whose hash would take years, and integers that all have the same hash."""
    for key in (b"K\x01" + b"2\x86" * 45, b"\x8a\x10" + (1 << 100).to_bytes(16, "little"), b"(K\x01\x91"):
        assert "contains a key that is a" in refusal(tmp_path, MAKERS[make] % key)
    for key in (b"K\x01", b"\x8c\x01a", b"N", b"G" + struct.pack(">d", 2.5)):
        assert "contains a key" not in refusal(tmp_path, MAKERS[make] % key)


def test_annotations_with_numbers_as_keys_are_read(tmp_path, build_here):
    extra = {1: 0, 2.5: 0, None: 0, np.int64(7): 0, b"a": 0, "ordered": collections.OrderedDict(a=1)}
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        path = tmp_path / f"{protocol}.pkl"
        path.write_bytes(pickle.dumps([clip("a", extra=extra)], protocol))
        assert len(open_table(path, tmp_path / "cache")) == 1


def test_reading_that_takes_too_long_is_ended(tmp_path):
    """In this test the child process may use only half a second of processor time, so that the test is short."""
    (tmp_path / "a.pkl").write_bytes(BUSY)
    program = "from pipelines.annotations import build; build.SECONDS = 0.5; build.main()"
    assert run("-c", program, tmp_path / "a.pkl", tmp_path / "table", os.getpid()).returncode == -signal.SIGXCPU


@pytest.mark.soak
def test_reading_that_takes_too_long_is_one_sentence(tmp_path):
    assert "takes more than 5 s to read" in refusal(tmp_path, BUSY)


def test_text_from_a_file_cannot_draw_on_the_terminal(tmp_path):
    name = "a\x1b[2J\udce9\n"
    for content in (
        [clip(name, label="x")],
        [clip(name), clip(name)],
        {"split": {name: [3.5]}, "annotations": [clip("a")]},
        {"split": {name: "x"}, "annotations": [clip("a")]},
    ):
        assert "a\\x1b[2J\\xe9\\n" in refusal(tmp_path, content)


def test_pipes_and_devices_are_refused_before_they_are_opened(tmp_path):
    os.mkfifo(tmp_path / "a.pkl")
    with pytest.raises(AnnotationError, match="is a pipe, not a file"):
        open_table(tmp_path / "a.pkl", tmp_path)
    with pytest.raises(AnnotationError, match="is a device, not a file"):
        open_table(Path("/dev/zero"), tmp_path)


def test_valid_files_of_unusual_kinds_are_read(tmp_path):
    scores = np.ones((1, 6, 17), np.float32)
    listed = clip("list")["keypoint"].tolist()
    clips = [
        *(clip(f"shares {i}", keypoint_score=scores) for i in range(50)),
        clip("list", keypoint=listed, keypoint_score=scores.tolist(), img_shape=np.array([1080, 1920])),
        clip("numpy", label=np.int64(3), total_frames=np.array(6), img_shape=(np.int32(1080), 1920.0)),
        clip("caf\udce9", label=True),
        clip(7),
    ]
    path = tmp_path / "a.pkl"
    path.write_bytes(pickle.dumps({"split": {"x": np.array(["list", "numpy"]), 3: ("7",)}, "annotations": clips}))
    table = open_table(path, tmp_path / "cache")
    assert table.names[-4:].tolist() == ["list", "numpy", "caf\udce9", "7"]
    assert {name: rows.tolist() for name, rows in table.splits.items()} == {"x": [50, 51], "3": [53]}
