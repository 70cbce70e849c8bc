"""The digest of a file is computed once, and again only if the file changes."""

import hashlib
import os

import pytest

from pipelines.annotations import file_digest
from pipelines.annotations.file_digest import MEBIBYTE, digest_of


def sha(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()[:20]


@pytest.fixture
def hashed(monkeypatch):
    """Return a list to which each reading of a whole file adds the file's name."""
    calls = []
    whole = hashlib.file_digest

    def counted(file, name):
        calls.append(file.name)
        return whole(file, name)

    monkeypatch.setattr(file_digest.hashlib, "file_digest", counted)
    return calls


def test_a_known_file_is_not_read_again(tmp_path, hashed):
    path = tmp_path / "poses.pkl"
    path.write_bytes(os.urandom(3 * MEBIBYTE))
    assert [digest_of(path, tmp_path / "cache") for _ in range(3)] == [sha(path)] * 3
    assert len(hashed) == 1
    other = tmp_path / "other.pkl"
    other.write_bytes(b"")
    assert digest_of(other, tmp_path / "cache") == sha(other)
    assert digest_of(path, tmp_path / "cache") == sha(path)
    assert len(hashed) == 2


def test_a_changed_file_is_read_anew(tmp_path):
    path = tmp_path / "poses.pkl"
    content = bytearray(os.urandom(3 * MEBIBYTE))
    seen = set()
    for place in (None, 0, len(content) // 2, len(content) - 1):
        if place is not None:
            content[place] ^= 1
        path.write_bytes(content)
        os.utime(path, ns=(1, 1))  # mtime stays the same, so only ctime shows the change
        assert digest_of(path, tmp_path / "cache") == sha(path)
        seen.add(sha(path))
    assert len(seen) == 4
    path.write_bytes(content[:-5])
    assert digest_of(path, tmp_path / "cache") == sha(path)


@pytest.mark.parametrize("note", ["", "{", "[]", '{"look": [1]}', '{"digest": 5}'])
def test_a_damaged_note_is_passed_over(tmp_path, note):
    path, cache = tmp_path / "poses.pkl", tmp_path / "cache"
    path.write_bytes(b"content")
    digest_of(path, cache)
    (file,) = cache.iterdir()
    file.write_text(note)
    assert digest_of(path, cache) == sha(path)


def test_a_cache_that_takes_no_note_is_done_without(tmp_path):
    path = tmp_path / "poses.pkl"
    path.write_bytes(b"content")
    (tmp_path / "cache").write_text("a file stands where the folder should")
    assert digest_of(path, tmp_path / "cache") == sha(path)
    with pytest.raises(FileNotFoundError):
        digest_of(tmp_path / "absent", tmp_path)


def test_a_name_that_is_no_text(tmp_path):
    """Names that are not UTF-8 occur if files were named under another locale."""
    path = tmp_path / os.fsdecode(b"\xff.pkl")
    path.write_bytes(b"content")
    assert [digest_of(path, tmp_path / "cache") for _ in range(2)] == [sha(path)] * 2
