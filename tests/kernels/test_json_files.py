"""JSON of unknown origin is read only within limits on its size and depth."""

import json

import pytest

from kernels.json_files import MAX_BYTES, MAX_DEPTH, parse_json, read_json
from kernels.program import UserError

DEEP = "[" * MAX_DEPTH + "]" * MAX_DEPTH


def test_what_is_within_the_limits_is_read(tmp_path):
    brackets = {f"{number}": '[{"\\' for number in range(100)}
    for content in (brackets, json.loads(DEEP), [[]] * 1000, {"喝水": 1.5}):
        for text in (json.dumps(content), json.dumps(content).encode(), b"\xef\xbb\xbf" + json.dumps(content).encode()):
            assert parse_json(text) == content
    (tmp_path / "a.json").write_text(DEEP)
    assert read_json(tmp_path / "a.json") == json.loads(DEEP)


@pytest.mark.parametrize(
    "text", [f"[{DEEP}]", '{"a":' * 1000, "[" * 1_000_000, '"' + '\\"' * 1_000_000 + "[" * 1000, "[" * 100 + '"', "nul"]
)
def test_text_that_is_too_deep_or_no_json_is_refused(text):
    with pytest.raises(ValueError):
        parse_json(text)
    with pytest.raises(ValueError):
        parse_json(text.encode())


def test_large_files_and_folders_are_refused_before_they_are_read(tmp_path):
    with open(tmp_path / "a.json", "wb") as file:
        file.truncate(1 << 40)  # a sparse file takes no space on the disk, but reading it would fill the memory
    with pytest.raises(ValueError, match=f"it has more than {MAX_BYTES / 1e6:.0f} MB"):
        read_json(tmp_path / "a.json")
    with pytest.raises(ValueError, match="more than 0 MB"):
        parse_json("[1, 2]", 5)
    with pytest.raises(UserError, match="is a folder, not a file"):
        read_json(tmp_path)
