"""Programs handle videos with any file name, and no name sends control codes to a terminal."""

import json
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest

from kernels.names import LONGEST
from kernels.program import exit_code
from pipelines.annotate.cli import main as annotate
from pipelines.packs.pack import open_pack
from pipelines.prepare.cli import check_main
from pipelines.prepare.cli import main as prepare
from pipelines.verify.cli import main as verify
from tests.pipelines.made_videos import Made, make

NAMES = (
    *(
        "10:30 walk",
        "http:x",
        "pipe:0",
        'it\'s "quoted"',
        "-rf",
        "😀 喝水",
        "x" * 248,
        "two\nlines",
        "\x1b[31mred",
        "a\\b",
    ),
    *(
        "100%d $HOME `id`",
        "[red]markup[/red]",
        "two  spaces",
        os.fsdecode(b"\xff\xe9"),
        "folder/b",
        "tab\tname",
        "txt.\u202e4pm",
    ),
)


class Odd:
    def __init__(self, folder: Path):
        self.folder, self.videos, self.poses = folder, folder / "videos", folder / "poses"
        folder.joinpath("made").mkdir()
        video, lines = make(folder / "made", Made()), []
        for number, name in enumerate(NAMES):
            target = self.videos / f"{name}.mp4"
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(video, target)
            pose = self.poses / f"{name}.npz"
            pose.parent.mkdir(parents=True, exist_ok=True)
            np.savez(pose, keypoint=np.full((1, 9, 17, 2), 20 + number) + np.arange(17)[:, None])
            cell = '"' + f"{name}.mp4".replace('"', '""') + '"'
            lines.append(f"{cell},{number % 2},{'val' if number % 3 else 'train'}\n")
        self.labels = folder / "labels.csv"
        self.labels.write_bytes(os.fsencode("".join(lines)))

    def run(self, program, *words, **options) -> int:
        return exit_code(lambda: program(*words, **options), needs=())


@pytest.fixture
def odd(tmp_path) -> Odd:
    return Odd(tmp_path)


def shows_one_line_each(text: str) -> bool:
    return all(line.isprintable() for line in text.split("\n"))


def test_files_of_any_name_become_clips(odd, capsys):
    out, cache = odd.folder / "my.pkl", odd.folder / "cache"
    assert odd.run(annotate, odd.videos, odd.labels, out=out, poses=odd.poses) == 0
    assert odd.run(verify, out, videos=odd.videos, cache=cache) == 0
    assert odd.run(prepare, out, videos=odd.videos, packs=odd.folder / "packs", cache=cache, workers=1) == 0
    assert odd.run(check_main, odd.folder / "packs") == 0
    pack = open_pack(odd.folder / "packs")
    assert (pack.num_frames == 9).all()
    assert sorted(pack.names.tolist()) == sorted(name.removesuffix("/") for name in NAMES)
    for row in range(len(NAMES)):
        file = str(pack.clip_file(row).relative_to(odd.folder / "packs"))
        assert file.isprintable()
        assert not set(file) & set("\"':*")
        assert max(len(os.fsencode(part)) for part in file.split("/")) <= LONGEST + len(".12345678.mov")
    said = "".join(capsys.readouterr())
    assert shows_one_line_each(said)


def test_bad_videos_of_any_name_are_listed_on_lines_of_their_own(odd, capsys):
    out, cache = odd.folder / "my.pkl", odd.folder / "cache"
    assert odd.run(annotate, odd.videos, odd.labels, out=out, poses=odd.poses) == 0
    for name in NAMES:
        (odd.videos / f"{name}.mp4").write_bytes(b"no video")
    capsys.readouterr()
    assert odd.run(verify, out, videos=odd.videos, cache=cache) == 2
    assert odd.run(verify, out, videos=odd.videos, cache=cache, max_bad=1, json=odd.folder / "all.json") == 2
    assert odd.run(prepare, out, videos=odd.videos, packs=odd.folder / "packs", cache=cache, workers=1, max_bad=1) == 0
    said = "".join(capsys.readouterr())
    assert shows_one_line_each(said)
    assert "x" * 61 not in said
    assert "[red]markup[/red]: the video cannot be decoded" in said
    assert len(json.loads((odd.folder / "all.json").read_text())["videos"]["broken"]) == len(NAMES)


def test_two_spellings_of_one_path_do_not_share_a_file_while_they_are_packed(odd, capsys):
    clip = {"label": 0, "img_shape": (48, 64), "total_frames": 9}
    clips = [
        clip | {"frame_dir": name, "keypoint": np.full((1, 9, 17, 2), 20.0 + number) + np.arange(17)[:, None]}
        for number, name in enumerate(("folder/b", "folder//b"))
    ]
    out = odd.folder / "two.pkl"
    out.write_bytes(pickle.dumps(clips))
    options = {"videos": odd.videos, "packs": odd.folder / "packs", "cache": odd.folder / "cache"}
    assert odd.run(prepare, out, workers=2, **options) == 0
    pack = open_pack(odd.folder / "packs")
    assert sorted(pack.names.tolist()) == ["folder//b", "folder/b"]
    assert odd.run(check_main, odd.folder / "packs") == 0
