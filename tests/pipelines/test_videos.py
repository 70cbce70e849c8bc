"""Videos are found under the names that they have in the data sets, without being renamed."""

import pytest

from pipelines.videos.find import MissingVideo, find_videos, summary


def put(folder, *files):
    for file in files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).touch()


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("S001C001P001R001A001", "S001C001P001R001A001_rgb.avi"),  # NTU's original file name
        ("S001C001P001R001A001", "S001C001P001R001A001.avi"),
        ("S001C001P001R001A001", "S001C001P001R001A001.mp4"),  # as MMAction2's compress_nturgbd.py names it
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
    assert clip == f"2 videos match the name: {tmp_path / 'train/clip.mp4'}, {tmp_path / 'val/clip.mp4'}"
    assert twice.startswith("2 videos match the name")
    assert all(isinstance(reason, MissingVideo) for reason in (clip, twice, missing))
    assert missing == "there is no such video"


def test_spaces_and_signs_in_names(tmp_path):
    files = [
        "my clips/drink water (1).mp4",
        "my clips/50% off, [take 2]_rgb.avi",
        "name with end .MOV",
        "#1 'quoted'.mkv",
    ]
    put(tmp_path, *files)
    names = ["drink water (1)", "my clips/50% off, [take 2]", "name with end ", "#1 'quoted'.mkv"]
    assert find_videos(tmp_path, names) == [str(tmp_path / file) for file in files]


def test_split_folders_of_either_side(tmp_path):
    """The folder of the split may be missing in the names or in the paths of the videos. The nearest match is used."""
    put(tmp_path, "a.mp4", "val/b_rgb.avi", "train/c.mp4", "test/c.mp4", "c.avi")
    names = ["train/a", "b", "test/c.mp4", "c", "val/c"]
    a, b, test_c, c, val_c = find_videos(tmp_path, names)
    assert [a, b, test_c, c] == [str(tmp_path / file) for file in ("a.mp4", "val/b_rgb.avi", "test/c.mp4", "c.avi")]
    assert val_c.startswith("3 videos match the name")  # there is no val/c, but three other videos are named c


def test_links_within_the_folder_are_followed_once(tmp_path):
    put(tmp_path, "store/1.mp4", "store/deep/2.mp4")
    (tmp_path / "store/up").symlink_to(tmp_path)
    (tmp_path / "clip.mp4").symlink_to("store/1.mp4")
    (tmp_path / "nowhere.mp4").symlink_to("store/none.mp4")
    clip, two, nowhere = find_videos(tmp_path, ["clip", "2", "nowhere"])
    assert [clip, two] == [str(tmp_path / "clip.mp4"), str(tmp_path / "store/deep/2.mp4")]
    assert nowhere == "there is no such video"


@pytest.mark.parametrize("linked", ["file", "folder"])
def test_links_that_leave_the_folder_are_refused(tmp_path, linked):
    put(tmp_path, "elsewhere/clip.mp4", "videos/other.mp4", "videos2/clip.mp4")
    folder = tmp_path / "videos"
    target = tmp_path / ("videos2/clip.mp4" if linked == "file" else "elsewhere")
    link = folder / ("clip.mp4" if linked == "file" else "set")
    link.symlink_to(target)
    other, clip = find_videos(folder, ["other", "clip"])
    assert other == str(folder / "other.mp4")
    assert isinstance(clip, MissingVideo)
    assert clip.startswith(
        f"there is no such video, but some links lead out of {folder}, such as {link}; name the folder"
    )
    assert clip.endswith("or, if you trust them, set data.follow_links=true (--follow-links)")
    followed = str(link if linked == "file" else link / "clip.mp4")
    assert find_videos(folder, ["other", "clip"], follow_links=True) == [other, followed]
    (folder / "other.mp4").unlink()
    with pytest.raises(ValueError, match=r"contains only links that lead out of it, .*; name the folder"):
        find_videos(folder, ["clip"])
    assert find_videos(folder, ["clip"], follow_links=True) == [followed]


def test_the_folder_itself_may_be_a_link(tmp_path):
    put(tmp_path, "disk/train/clip.mp4")
    (tmp_path / "videos").symlink_to(tmp_path / "disk")
    assert find_videos(tmp_path / "videos", ["clip"]) == [str(tmp_path / "videos/train/clip.mp4")]


@pytest.mark.parametrize("name", ["../secret", "/etc/secret", "train/../../secret", "..\\secret"])
def test_no_name_leads_out_of_the_folder(tmp_path, name):
    put(tmp_path, "secret.mp4", "videos/train/other.mp4")
    assert find_videos(tmp_path / "videos", [name]) == ["there is no such video"]


def test_summary_counts_and_names_a_few():
    reasons = [*((f"clip{n}", "there is no such video") for n in range(5)), ("x", "2 videos match the name: a, b")]
    expected = "there is no such video: 5 (clip0, clip1, clip2, ...); several videos match the name: 1 (x)"
    assert summary(reasons) == expected
    many = [(f"clip{n}", f"reason {n // 2}") for n in range(10)]
    assert summary(many, limit=2) == "reason 0: 2 (clip0, clip1); reason 1: 2 (clip2, clip3); 6 for other reasons"


def test_wrong_folder_is_one_sentence(tmp_path):
    with pytest.raises(ValueError, match=r"no folder .*nowhere; name the folder"):
        find_videos(tmp_path / "nowhere", ["clip"])
    put(tmp_path, "notes.txt")
    with pytest.raises(ValueError, match="contains no video"):
        find_videos(tmp_path, ["clip"])
