"""Videos are found as the data sets come, without renaming."""

import pytest

from pipelines.videos import Missing, find_videos


def put(folder, *files):
    for file in files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).touch()


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("S001C001P001R001A001", "S001C001P001R001A001_rgb.avi"),  # NTU as it comes
        ("S001C001P001R001A001", "S001C001P001R001A001.avi"),
        ("S001C001P001R001A001", "S001C001P001R001A001.mp4"),  # NTU as the guides re-encode it
        ("S001C001P001R001A001_rgb", "S001C001P001R001A001.mp4"),
        ("S001C001P001R001A001", "nturgb+d_rgb/S001C001P001R001A001_rgb.avi"),
        ("0003_01_0001.mp4", "0003_01_0001.mp4"),  # MA-52
        ("0003_01_0001.mp4", "train/0003_01_0001.mp4"),
        ("train/0003_01_0001.mp4", "0003_01_0001.mp4"),
        ("train/0003_01_0001", "train/0003_01_0001.MP4"),
        ("a clip.with dots", "a clip.with dots.webm"),
        ("train\\clip", "train/clip.mkv"),
    ],
)
def test_found(tmp_path, name, file):
    put(tmp_path, file, "other.avi", "notes.txt")
    assert find_videos(tmp_path, [name]) == [str(tmp_path / file)]


def test_place_decides_before_name(tmp_path):
    put(tmp_path, "train/clip.mp4", "val/clip.mp4")
    assert find_videos(tmp_path, ["val/clip"]) == [str(tmp_path / "val/clip.mp4")]


def test_ambiguous_and_missing(tmp_path):
    put(tmp_path, "train/clip.mp4", "val/clip.mp4", "twice.avi", "twice.mp4")
    clip, twice, missing = find_videos(tmp_path, ["clip", "twice", "clip.txt"])
    assert clip == f"2 videos could be meant: {tmp_path / 'train/clip.mp4'}, {tmp_path / 'val/clip.mp4'}"
    assert twice.startswith("2 videos could be meant")
    assert all(isinstance(reason, Missing) for reason in (clip, twice, missing))
    assert missing == "there is no such video"


def test_links_are_followed_once(tmp_path):
    put(tmp_path, "elsewhere/clip.mp4")
    folder = tmp_path / "videos"
    folder.mkdir()
    (folder / "up").symlink_to(folder)
    (folder / "set").symlink_to(tmp_path / "elsewhere")
    assert find_videos(folder, ["clip"]) == [str(folder / "set/clip.mp4")]


def test_wrong_folder_is_one_sentence(tmp_path):
    with pytest.raises(ValueError, match=r"no folder .*nowhere; set data.videos"):
        find_videos(tmp_path / "nowhere", ["clip"])
    put(tmp_path, "notes.txt")
    with pytest.raises(ValueError, match="holds no video"):
        find_videos(tmp_path, ["clip"])
