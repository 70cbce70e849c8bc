"""Frames of a pack are read one by one, and damaged frames are reported before any decoder gets them."""

import contextlib
import hashlib
import io
import itertools
import json
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from pipelines.packs import format
from pipelines.packs.format import (
    PackError,
    PackSettings,
    clip_id,
    index_of,
    merge_parts,
    packets_text,
    parts_of,
    read_manifest,
    write_index,
)
from pipelines.packs.pack import open_pack


@pytest.fixture
def made(scene):
    work = scene(10, 12)
    return work.prepare()[0]


def flip_bit(path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 4
    path.write_bytes(content)


def packet_start(pack, row: int, frame: int) -> int:
    first = int(pack.first_packet[row])
    return int(pack.columns["first"][row]) + int(pack.packets[first : first + frame, 0].sum())


def test_columns(made, scene):
    assert made.names.tolist() == ["S001C001P001R001A001", "S001C001P001R001A002"]
    assert made.num_frames.tolist() == [10, 12]
    assert made.source_size.tolist() == [[160, 120]] * 2
    assert made.frame_size.shape == (2, 2)
    assert made.region.shape == (2, 4)
    assert made.region.dtype == np.float64
    assert made.bad == {}


def test_frames_in_any_order_and_clamped(made, film):
    packets, damaged = made.read_frames(1, [7, 0, 7, 11, 12, 999, -3])
    assert damaged == []
    scale = made.frame_size[1] / (made.region[1, 2:] - made.region[1, :2])
    box = (np.array([[0, 0], [160, 120]]) - made.region[1, :2]) * scale
    pictures = [np.asarray(Image.open(io.BytesIO(packet)).convert("RGB")) for packet in packets]
    assert {picture.shape for picture in pictures} == {(*made.frame_size[1][::-1], 3)}
    assert [film.number(picture, tuple(box.ravel())) for picture in pictures] == [7, 0, 7, 11, 11, 11, 0]


def test_every_damaged_byte_is_found(made):
    path = made.clip_file(0)
    whole = path.read_bytes()
    for number, position in enumerate(
        np.linspace(packet_start(made, 0, 0), packet_start(made, 0, 10) - 1, 40).astype(int)
    ):
        flip_bit(path, position)
        _, damaged = made.read_frames(0, list(range(10)))
        assert len(damaged) == 1, number
        assert packet_start(made, 0, damaged[0]) <= position < packet_start(made, 0, damaged[0] + 1)
        path.write_bytes(whole)
    assert made.read_frames(0, [3, 4])[1] == []


def test_damage_is_reported_by_place_in_the_request(made):
    flip_bit(made.clip_file(0), packet_start(made, 0, 4) + 100)
    assert made.read_frames(0, [9, 4, 0, 4])[1] == [1, 3]
    assert made.read_frames(1, [9, 4, 0, 4])[1] == []


def test_cut_and_lost_clips_are_damage(made):
    path = made.clip_file(0)
    path.write_bytes(path.read_bytes()[: packet_start(made, 0, 6) + 1])
    assert made.read_frames(0, list(range(10)))[1] == [6, 7, 8, 9]
    path.unlink()
    packets, damaged = made.read_frames(0, [1, 2])
    assert packets == [b"", b""]
    assert damaged == [0, 1]


def test_threads_may_share_a_pack(made):
    expected = [made.read_frames(row, list(range(10)))[0] for row in (0, 1)]
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda number: made.read_frames(number % 2, list(range(10)))[0], range(200)))
    assert all(packets == expected[number % 2] for number, packets in enumerate(found))


def test_rows_follow_the_table(scene):
    work = scene(8, 9, 10)
    work.video(1).write_bytes(b"no video")
    work.clips.reverse()
    work.clips.append(work.clips[0] | {"frame_dir": "unknown"})
    pack, _ = work.prepare()
    assert pack.names.tolist() == [*reversed(work.names), "unknown"]
    assert pack.num_frames.tolist() == [10, 0, 8, 0]
    assert pack.bad == {
        "unknown": "there is no such video",
        work.names[1]: "the video cannot be decoded (Invalid data found when processing input)",
    }
    assert pack.clip_file(2) == work.clip(0)
    assert sorted(open_pack(work.out).num_frames.tolist()) == [0, 8, 10]


def test_unfinished_pack_is_one_sentence(tmp_path):
    with pytest.raises(PackError, match=r"contains no finished pack; make one with python -m pipelines.prepare"):
        open_pack(tmp_path)


def test_torn_lines_are_left_out(made, tmp_path):
    line = next(iter(read_manifest(made.folder).values())) | {"clip": "a", "bad": "x}"}
    whole = json.dumps(line)
    for cut in range(12):
        (tmp_path / "manifest.jsonl").write_text(whole + "\n" + json.dumps({"clip": "b"})[:cut] + "\n" + "\0\0")
        assert read_manifest(tmp_path).get("a") == line


def test_index_depends_on_no_order(made, tmp_path):
    lines = read_manifest(made.folder)
    for number, order in enumerate((list(lines), list(reversed(lines)))):
        (tmp_path / str(number)).mkdir()
        write_index(tmp_path / str(number), [lines[name] for name in order])
    files = [sorted(path for path in (tmp_path / number).rglob("*") if path.is_file()) for number in "01"]
    assert [path.read_bytes() for path in files[0]] == [path.read_bytes() for path in files[1]]
    assert index_of(lines.values()).columns["clip"].tolist() == sorted(lines)


def merged(folder, written, *parts, damage=lambda folder: None) -> dict[str, bytes]:
    """Write a pack whose manifest has the lines `written`, then merge parts with further lines.

    Returns the content of all files.
    """
    (folder / "parts").mkdir(parents=True)
    write_index(folder, written)
    for number, lines in enumerate(parts):
        (folder / "parts" / f"{number}.jsonl").write_text("".join(lines))
        os.utime(folder / "parts" / f"{number}.jsonl", (number, number))
    damage(folder)
    merge_parts(folder)
    assert not parts_of(folder)
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def a_line(number: int, seed: int = 0, **changes) -> dict:
    rng = np.random.default_rng([number, seed])
    clip, frames = hashlib.sha256(str(number).encode()).hexdigest()[:20], int(rng.integers(0, 9))
    line = {"clip": clip, "name": "N" * int(rng.integers(1, 9)), "settings": "s", "joints": f"j{number}", "file": "f"}
    line |= {"bad": "" if frames else "broken", "source": "v", "stamps": [[seed, 2, 3]] * 4, "source_size": [9, 8]}
    line |= {"region": [0, 0, 1.5, 2], "frame_size": [4, 2], "fewest": 8, "clip_bytes": 3, "first": 1}
    line |= {"num_frames": frames, "packets": packets_text(*rng.integers(0, 1 << 32, (2, frames)).tolist())}
    return line | changes


@pytest.mark.parametrize("seed", range(20))
def test_merging_adds_lines_as_if_all_were_written_at_once(tmp_path, seed, monkeypatch):
    """A merge gives the same manifest and index as writing all lines at once.

    The parts contain lines of new clips and newer lines of known clips. Some lines are cut off.
    """
    rng = np.random.default_rng(seed)
    written = [a_line(number) for number in range(int(rng.integers(1, 40)))]
    parts = []
    for part in range(int(rng.integers(1, 4))):
        numbers = rng.integers(0, 50, int(rng.integers(0, 12))).tolist()
        parts.append([json.dumps(a_line(number, part + 1)) + "\n" for number in numbers])
        parts[-1].append(json.dumps(a_line(99))[: int(rng.integers(0, 300))])
    lines = {line["clip"]: line for line in written}
    for text in itertools.chain(*parts):
        with contextlib.suppress(json.JSONDecodeError):
            lines[json.loads(text)["clip"]] = json.loads(text)
    expected = merged(tmp_path / "expected", lines.values(), [])
    monkeypatch.setattr(format, "read_manifest", lambda folder: pytest.fail("the whole manifest was parsed"))
    assert merged(tmp_path / "merged", written, *parts) == expected


def two_lines_swapped(folder):
    manifest = folder / "manifest.jsonl"
    first, second, *others = manifest.read_text().splitlines(keepends=True)
    manifest.write_text("".join([second, first, *others]))


def another_length(folder):
    with open(folder / "manifest.jsonl", "a") as file:
        file.write("\n")


def earlier_version(folder):
    (folder / "parts" / "1.jsonl").write_text('{"name": "a", "bad": ""}\n')


@pytest.mark.parametrize("damage", [two_lines_swapped, another_length, earlier_version])
def test_merging_parses_a_manifest_that_its_index_does_not_describe(tmp_path, damage):
    written, new = [a_line(number) for number in range(9)], a_line(20)
    found = merged(tmp_path / "merged", written, [json.dumps(new) + "\n"], damage=damage)
    expected = merged(tmp_path / "expected", [*written, new], [])
    assert {name: found[name] for name in expected} == expected


def test_a_clip_is_identified_by_its_video_its_joints_and_the_encoder():
    settings = [PackSettings(), PackSettings(count=48), PackSettings(box_pixels=128), PackSettings(quality=2)]
    digests = [it.digest() for it in settings]
    assert digests[0] == digests[1]
    assert len(set(digests)) == 3
    clips = {clip_id("video", "joints", digest) for digest in digests}
    assert len(clips | {clip_id("other", "joints", digests[0]), clip_id("video", "others", digests[0])}) == 5
