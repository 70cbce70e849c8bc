"""`python -m trainer predict` draws a skeleton at its place in the picture, or says why this is not possible."""

import pickle
import shutil
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
import tyro
from safetensors.torch import save_file

from models.networks import build_model
from trainer.cli import run_command
from trainer.commands.train import Options
from trainer.settings import experiment_of

# WIDE is packed as a square of 96x96. SAME is packed as 128x96, which is 4:3 like its video.
WIDE, SAME = "S001C001P021R001A001", "S001C001P021R001A010"


@pytest.fixture(scope="module")
def network(tiny, tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("place") / "net.safetensors"
    torch.manual_seed(0)
    state = build_model(experiment_of(tyro.cli(Options, args=tiny)).model).state_dict()
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, file)
    return file


@pytest.fixture
def files(tiny, tmp_path) -> dict[str, Path]:
    """Return files by name: annotations and videos of the tiny demo, clips of its pack, and .npz skeletons.

    Some of the skeletons have the size of their image, and some do not.
    """
    settings = dict(word.split("=", 1) for word in tiny if "=" in word)
    files = {"poses": Path(settings["data.annotations"])}
    for name, clip in (("wide", WIDE), ("same", SAME)):
        files[name] = Path(settings["data.videos"]) / f"{clip}.mp4"
        (files[f"{name} clip"],) = Path(settings["data.packs"]).glob(f"clips/{clip}.*.mov")
    files["copied clip"] = tmp_path / f"{WIDE}.mov"
    shutil.copy(files["wide clip"], files["copied clip"])
    for name, size in (("half", (80, 60)), ("turned", (60, 80))):
        files[name] = scaled(files["wide"], tmp_path / name / f"{WIDE}.mp4", *size)
    clips = pickle.loads(files["poses"].read_bytes())["annotations"]
    clip = next(clip for clip in clips if clip["frame_dir"] == WIDE)
    keypoint, width, height = clip["keypoint"], *size_of(files["wide clip"])
    below = keypoint.copy()
    below[:, :, 11:, 1] += 120  # hips, knees and ankles
    far = np.zeros_like(keypoint)
    # these joints are far outside in every third frame, and missing in all other frames
    far[:, ::3] = 9 * keypoint[:, ::3]
    arrays = {
        "unsized": {"keypoint": keypoint},
        "sized": {"keypoint": keypoint, "img_shape": (120, 160)},
        "of clip": {"keypoint": keypoint / 2, "img_shape": (height, width)},
        "of 1080p": {"keypoint": far},
        "left of all": {"keypoint": keypoint - 160},
        "sitting": {"keypoint": below},
        "nobody": {"keypoint": keypoint * 0},
    }
    for name, content in arrays.items():
        files[name] = tmp_path / f"{name}.npz"
        np.savez(files[name], **content)
    return files


def scaled(video: Path, path: Path, width: int, height: int) -> Path:
    path.parent.mkdir()
    with av.open(video) as source, av.open(path, "w") as container:
        stream = container.add_stream("libx264", rate=30, options={"crf": "10"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for number, frame in enumerate(source.decode(video=0)):
            picture = frame.reformat(width=width, height=height)
            picture.pts, picture.time_base = number, Fraction(1, 30)
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    return path


def size_of(video: Path) -> tuple[int, int]:
    with av.open(video) as container:
        return container.streams.video[0].width, container.streams.video[0].height


def run(tiny, network, files, video: str, pose: str, out: Path) -> int:
    words = ["predict", str(files[video]), *tiny, "--checkpoint", str(network), "--pose", str(files[pose])]
    return run_command([*words, "--window", "128", "--out", str(out)])


# Maps each pair of a video and a skeleton file to the message about the pair.
BESIDE = {
    ("wide clip", "poses"): "an image of 160x120 pixels, but {video} has {size} and shows a part of that image",
    ("same clip", "poses"): "an image of 160x120 pixels, but {video} has 128x96 and shows a part of that image",
    ("copied clip", "poses"): "an image of 160x120 pixels, but {video} has {size} and shows a part",
    ("copied clip", "sized"): "an image of 160x120 pixels, but {video} has {size} and shows a part",
    ("turned", "poses"): "an image of 160x120 pixels, but {video} has 60x80 and shows a part of that image, or shows",
    ("wide clip", "unsized"): "lie outside the image of {size} pixels (they extend to ",
    ("half", "of 1080p"): "lie outside the image of 80x60 pixels (they extend to ",
    ("wide", "left of all"): "and {video} has 160x120; give the original video, or write img_shape",
}


@pytest.mark.parametrize(("video", "pose"), BESIDE)
def test_a_skeleton_beside_the_person_is_one_sentence(tiny, network, files, tmp_path, capsys, video, pose):
    assert run(tiny, network, files, video, pose, tmp_path / "out") == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    size = "x".join(map(str, size_of(files[video])))
    assert error.startswith(f"error: {files[pose]}: ")
    assert BESIDE[video, pose].format(video=files[video], size=size) in error
    assert "give the original video" in error
    assert not list((tmp_path / "out").glob("*"))


@pytest.mark.parametrize(
    ("video", "pose"),
    [
        # `poses` contains the size of the original video, and `half` is a smaller copy of that video
        ("half", "poses"),
        ("half", "sized"),
        ("wide clip", "of clip"),
        ("wide", "sitting"),
        ("wide", "nobody"),
    ],
)
def test_what_fits_goes_on_working(tiny, network, files, tmp_path, video, pose):
    assert run(tiny, network, files, video, pose, tmp_path / "out") == 0


def test_a_scaled_videos_skeleton_is_drawn_on_the_person(tiny, network, files, tmp_path):
    """`predict` draws the bones at the same relative places in an original video and in its scaled copy."""
    places = []
    for video, pose, height in (("wide", "unsized", 120), ("half", "sized", 60)):
        pictures = []
        for poses in (pose, "nobody"):
            assert run(tiny, network, files, video, poses, tmp_path / video / poses) == 0
            with av.open(tmp_path / video / poses / f"{WIDE}.mp4") as container:
                frame = next(container.decode(video=0))
            assert frame.width == height * 4 // 3
            # Only the middle is compared: the upper part has bars, whose text depends on the skeleton too, and the
            # lower edge has a timeline.
            pictures.append(frame.to_ndarray(format="rgb24")[height * 2 // 5 : -height // 10].astype(int))
        rows, columns = np.nonzero(np.abs(pictures[0] - pictures[1]).max(axis=-1) > 60)
        places.append(np.array([rows.min(), rows.max(), columns.min(), columns.max()]) * 120 / height)
    np.testing.assert_allclose(*places, atol=8)
