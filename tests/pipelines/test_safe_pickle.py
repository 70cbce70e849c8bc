"""A pickle may contain numbers, text and plain arrays. Anything else is refused in one sentence, and no code runs."""

import builtins
import collections
import os
import pickle
import pickletools
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy._core import multiarray, numeric

from pipelines.annotations.schema import AnnotationError, read_pickle
from tests.programs import run

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)


class Calls:
    """An object whose pickle calls `function` with `arguments` and passes `state` to the result."""

    def __init__(self, function, *arguments, state=None):
        self.result = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self):
        return self.result


class Raw:
    """An object whose pickle makes the dtype '|O' in the form that NumPy uses in the state of an array."""

    def __reduce__(self):
        return np.dtype, ("O8", False, True), (3, "|", None, None, None, -1, -1, 63)


class Persistent(pickle.Pickler):
    def persistent_id(self, obj):
        return 1 if obj == "outside" else None


def dump(content, protocol=4) -> bytes:
    return pickle.dumps(content, protocol)


def put(folder: Path, content: bytes) -> Path:
    path = folder / "poses.pkl"
    path.write_bytes(content)
    return path


def refusal(folder: Path, content: bytes) -> str:
    """Assert that a pickle is refused in one sentence, and return this sentence."""
    path = put(folder, content)
    with pytest.raises(AnnotationError) as refused:
        read_pickle(path)
    text = str(refused.value)
    assert text.startswith(f"{path} cannot be read: ")
    assert text.endswith("; get the published skeleton pickle again")
    assert "\n" not in text
    assert len(text) < len(str(path)) + 300
    return text


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize(
    ("function", "argument", "named"),
    [
        (os.system, "touch {}", "system"),
        (subprocess.Popen, ["touch", "{}"], "Popen"),
        (exec, "open('{}', 'w')", "exec"),
        (eval, "open('{}', 'w')", "eval"),
        (getattr, "{}", "getattr"),
        (builtins.open, "{}", "open"),
        (os.mkdir, "{}", "mkdir"),
        (np.load, "{}", "numpy"),
        (np.lib.format.open_memmap, "{}", "open_memmap"),
    ],
)
def test_foreign_functions_are_named_and_never_called(tmp_path, protocol, nested, function, argument, named):
    marker = tmp_path / "was_here"
    filled = [part.format(marker) for part in argument] if isinstance(argument, list) else argument.format(marker)
    attack = Calls(function, filled)
    content = {"split": {}, "annotations": [{"keypoint": np.zeros(3), "label": [attack]}]} if nested else attack
    text = refusal(tmp_path, dump(content, protocol))
    assert "the pickle asks for " in text
    assert named in text
    assert not marker.exists()


def test_no_module_is_imported_for_a_pickle(tmp_path):
    for content in (b"cantigravity\ngeohash\n.", b"\x80\x04\x8c\x0bantigravity\x8c\x07geohash\x93."):
        assert "antigravity.geohash," in refusal(tmp_path, content)
    assert "antigravity" not in sys.modules
    assert "os.system," in refusal(tmp_path, b"(S'true'\nios\nsystem\n.")  # INST is an opcode of protocol 0
    assert "numpy.ndarray.tofile," in refusal(tmp_path, b"\x80\x04\x8c\x05numpy\x8c\x0endarray.tofile\x93.")


def test_a_name_cannot_draw_on_the_terminal(tmp_path):
    assert "\x1b" not in refusal(tmp_path, b"\x80\x04\x8c\x02os\x8c\x0cls\n\x1b[2Jhello\x93.")


@pytest.mark.parametrize(
    "attack",
    [
        # An array of objects that is made of raw bytes could contain any pointers that an attacker chooses.
        Calls(np.ndarray, (1,), "O", b"AAAAAAAA"),
        Calls(multiarray._reconstruct, np.ndarray, (3,), "O", state=(1, (1,), Raw(), False, b"AAAAAAAA")),
        Calls(numeric._frombuffer, b"AAAAAAAA", "O", (1,), "C"),
        Calls(multiarray.scalar, Raw(), b"AAAAAAAA"),
        np.array([1, None], object),
        np.zeros(2, [("x", np.float32), ("who", object)]),
        np.array(["2020-01-01"], "M8[D]"),
        np.zeros(2, np.complex64),
        # In each of these, the content does not fit the type and the shape.
        Calls(multiarray._reconstruct, np.ndarray, (0,), b"b", state=(1, (9,), np.dtype("f4"), False, b"1234")),
        Calls(multiarray._reconstruct, np.ndarray, (0,), b"b", state=(1, (-1,), np.dtype("f4"), False, b"1234")),
        Calls(multiarray._reconstruct, np.ndarray, (0,), b"b", state=(1, (1 << 62, 4), np.dtype("f4"), False, b"")),
        Calls(multiarray._reconstruct, np.ndarray, (0,), b"b", state=(1, (1,), np.dtype("f4"), False, [1])),
        Calls(multiarray._reconstruct, np.ndarray, (0,), b"b", state=(1, (1,), "f4", False, b"1234")),
        Calls(multiarray._reconstruct, np.memmap, (0,), b"b"),
        Calls(np.dtype, "f4", False, True, state=(3, "|", ("O", (1,)), None, None, 8, 8, 63)),
        Calls(np.dtype, "S4", False, True, state=(3, "?", None, None, None, 8, 8, 63)),
        # The first two of these make a view of an array that the pickle could then free.
        Calls(numeric._frombuffer, np.zeros(4), np.dtype("f8"), (4,), "C"),
        Calls(multiarray.scalar, np.dtype("f8"), np.zeros(4)),
        Calls(collections.OrderedDict, 3),
    ],
)
def test_arrays_that_are_not_plain_are_refused(tmp_path, attack):
    for protocol in PROTOCOLS:
        refusal(tmp_path, dump([attack], protocol))


def test_no_function_of_ours_is_changed(tmp_path):
    """The opcode BUILD could set attributes of a function, and so change the function for all later pickles."""
    attack = b"\x80\x04\x8c\x07_codecs\x8c\x06encode\x93N}\x8c\x0c__defaults__)s\x86b."
    assert "tries to change a function" in refusal(tmp_path, attack)
    assert "encoding 'idna'" in refusal(tmp_path, b"c_codecs\nencode\n(Va\nVidna\ntR.")


def test_persistent_ids_extensions_and_other_files_are_refused(tmp_path):
    with open(tmp_path / "persistent.pkl", "wb") as file:
        Persistent(file).dump(["outside"])
    assert "persistent id" in refusal(tmp_path, (tmp_path / "persistent.pkl").read_bytes())
    for content in (b"\x80\x04\x82\x01.", b"", b"\x80\x63.", b"\x89PNG\r\n\x1a\n", b"[1, 2]", b"\0" * 1000):
        refusal(tmp_path, content)
    refusal(tmp_path, b"\x80\x04" + b"(" * 100_000)
    refusal(tmp_path, b"\x80\x04\x8e" + (1 << 60).to_bytes(8, "little") + b"x.")  # asks for an array of 2^60 bytes


def test_a_file_cut_anywhere_is_one_sentence(tmp_path):
    whole = dump([{"keypoint": np.zeros((1, 3, 17, 2), np.float16), "label": 1}])
    for length in range(0, len(whole), 7):
        refusal(tmp_path, whole[:length])
    with pytest.raises(AnnotationError, match=r"nowhere.pkl cannot be opened \(No such file"):
        read_pickle(tmp_path / "nowhere.pkl")
    with pytest.raises(AnnotationError, match="is a folder, not a file"):
        read_pickle(tmp_path)


PLAIN = [
    np.arange(12, dtype=np.float16).reshape(1, 2, 3, 2),
    np.zeros((0, 5, 17, 2), np.float16),
    np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    np.arange(4, dtype=">f4"),
    np.arange(6, dtype=np.int64)[::2],
    np.array(["S001", "S001C002"]),
    np.array([True, False]),
    np.array(5.0),
    np.float16(1.5),
    np.int64(103),
    np.bool_(True),
    np.str_("S001C001"),
]


def respelled(content: bytes, old: str, new: str) -> bytes:
    """Return the pickle with `old` replaced by `new` in every name, as another version of NumPy would write it."""
    parts = bytearray()
    found = list(pickletools.genops(content))
    ends = [place for *_, place in found[1:]] + [len(content)]
    for (code, argument, place), end in zip(found, ends, strict=True):
        part = content[place:end]
        if code.name == "SHORT_BINUNICODE" and old in argument:
            text = argument.replace(old, new).encode()
            part = b"\x8c" + bytes([len(text)]) + text
        elif code.name == "GLOBAL":
            part = part.replace(old.encode(), new.encode())
        # FRAME opcodes are left out, because they would state wrong lengths
        parts += b"" if code.name == "FRAME" else part
    return bytes(parts)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("version", [1, 2])
def test_plain_content_of_every_protocol_and_numpy(tmp_path, protocol, version):
    names = ("numpy.core", "numpy._core")
    content = dump({"arrays": PLAIN, "again": PLAIN[0], "plain": ["é", 1, 2.5, None, (True,)]}, protocol)
    content = respelled(content, names[2 - version], names[version - 1])
    assert names[version - 1].encode() in content
    assert names[2 - version].encode() not in content
    read = read_pickle(put(tmp_path, content))
    assert read["plain"] == ["é", 1, 2.5, None, (True,)]
    assert read["again"] is read["arrays"][0]
    for expected, found in zip(PLAIN, read["arrays"], strict=True):
        np.testing.assert_array_equal(found, expected)
        assert found.dtype == pickle.loads(dump(expected, protocol)).dtype
        assert found.shape == expected.shape


MANGLE = """
import resource
import sys
from pathlib import Path
from tests.pipelines.test_safe_pickle import mangled
from pipelines.annotations.schema import AnnotationError, read_pickle

resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))  # a torn length can ask for any amount
path, read = Path(sys.argv[1]), 0
for content in mangled(int(sys.argv[2])):
    path.write_bytes(content)
    try:
        repr(read_pickle(path))
        read += 1
    except AnnotationError as error:
        assert "\\n" not in str(error)
print("read", read)
"""


def mangled(count: int):
    """Yield real pickles in which a few bytes are altered, removed or doubled."""
    clip = {"frame_dir": "a", "keypoint": np.ones((1, 2, 17, 2), np.float16), "total_frames": np.int64(2)}
    whole, rng = [dump([clip], protocol) for protocol in PROTOCOLS], random.Random(0)
    for number in range(count):
        content = bytearray(whole[number % len(whole)])
        for _ in range(rng.choice([1, 2, 5])):
            place, start = rng.randrange(len(content)), rng.randrange(len(content))
            kind, length = rng.randrange(3), rng.randrange(1, 30)
            if kind == 0:
                content[place] = rng.randrange(256)
            elif kind == 1:
                del content[place : place + length // 4]
            else:
                content[place:place] = content[start : start + length]
        yield bytes(content)


@pytest.mark.parametrize("count", [500, pytest.param(100_000, marks=(pytest.mark.soak, pytest.mark.timeout(1800)))])
def test_mangled_pickles_never_end_the_process(tmp_path, count):
    done = run("-c", MANGLE, tmp_path / "poses.pkl", count, timeout=None)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("read ")
