"""`python -m trainer predict` gives the scores of `eval` for each window, writes files, and needs limited memory."""

import json
import os
import shutil
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import ImageColor

from kernels.names import safe_stem
from pipelines.annotate.keypoints import Poses
from pipelines.skeleton import COCO_17
from pipelines.videos.decode import decode
from pipelines.videos.header import read_header
from pipelines.videos.times import FrameTimes, frame_times
from pipelines.videos.turn import NO_TURN, Turn
from tests.pipelines.made_videos import Made, make, number_of
from tests.programs import run_forked
from tests.trainer.predicting import VIDEO, predicted, rgb_network
from tests.trainer.test_end_to_end import size_of_png
from trainer.cli import run_command
from trainer.predict import scorer
from trainer.predict.panel import class_colour
from trainer.predict.result import Window
from trainer.predict.video import AnnotatedVideo, Explanation
from trainer.runtime.faults import NO_MEMORY

EVEN = FrameTimes(np.arange(7), Fraction(1, 30))
NAMES = ("wave", "kick", "red", "jump")


def window(label: int) -> Window:
    """Return a window whose best class is `label`, with a probability of 70 %."""
    return Window(0, 6, {"fused": torch.full((4,), 0.1).index_fill(0, torch.tensor([label]), 0.7)})


@pytest.fixture(scope="module")
def scores(tiny, trained):
    assert run_command(["eval", *tiny, "--checkpoint", str(trained)]) == 0
    return np.load(trained.parent / "eval" / "scores.npz")


def test_one_window_says_what_eval_says(tiny, trained, scores, paths, annotation, tmp_path):
    names = [VIDEO, "S001C001P021R001A007", "S001C001P022R001A012"]
    videos = [paths[0] / f"{name}.mp4" for name in names]
    found = predicted(tiny, trained, tmp_path / "a", *videos, "--pose", paths[1], "--window", 128)
    np.savez(tmp_path / "own.npz", **{key: annotation[key] for key in ("keypoint", "keypoint_score")})
    found["npz"] = predicted(tiny, trained, tmp_path / "b", videos[0], "--pose", tmp_path / "own.npz", "--window", 128)[
        VIDEO
    ]
    rows = {name: scores["name"].tolist().index(name) for name in names} | {"npz": scores["name"].tolist().index(VIDEO)}
    for name, row in rows.items():
        (window,) = found[name]["windows"]
        expected = {stream: scores[stream][row] for stream in ("rgb", "pose")}
        expected["fused"] = (expected["rgb"] + expected["pose"]) / 2
        for stream, probability in expected.items():
            guesses = window[stream]
            assert [guess["class"] for guess in guesses] == np.argsort(-probability)[:5].tolist()
            values = [guess["probability"] for guess in guesses]
            np.testing.assert_allclose(values, np.sort(probability)[:-6:-1], atol=1e-5)
    spread = [np.ptp(scores[stream][list(rows.values())], axis=0).max() for stream in ("rgb", "pose")]
    assert min(spread) > 1e-2  # the scores of different clips differ, so exchanged clips would be noticed


def test_files_of_a_video_in_windows(tiny, trained, paths, annotation, tmp_path, capsys):
    video, total = paths[0] / f"{VIDEO}.mp4", annotation["total_frames"]
    found = predicted(tiny, trained, tmp_path, video, "--pose", paths[1], "--window", 24, "--stride", 16)[VIDEO]
    windows = found["windows"]
    assert [window["first_frame"] for window in windows] == [16 * number for number in range(len(windows))]
    assert windows[-1]["last_frame"] == total - 1
    assert windows[0]["end_s"] == 0.8
    shown = capsys.readouterr().out
    assert "0 to 23" in shown
    assert "all windows" in shown
    assert min(size_of_png(tmp_path / f"{VIDEO}.png")) > 200
    with av.open(tmp_path / f"{VIDEO}.mp4") as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.average_rate) == ("h264", 30)
        assert sum(1 for _ in container.decode(stream)) == total
    assert not list(tmp_path.glob("*.tmp*"))
    words = (video, "--pose", paths[1], "--window", 24, "--stride", 16, "--explain")
    # --explain changes only the pictures
    assert predicted(tiny, trained, tmp_path / "explained", *words)[VIDEO] == found
    for suffix in (".png", ".mp4"):
        files = [folder / f"{VIDEO}{suffix}" for folder in (tmp_path, tmp_path / "explained")]
        assert files[0].read_bytes() != files[1].read_bytes()


def test_a_map_is_drawn_in_the_box_that_the_network_saw():
    maps = np.zeros((2, 4, 4))
    maps[1, 2:, :2] = 1  # the lower left quarter of the box, in the second sampled frame
    explanation = Explanation({"rgb": maps}, {"rgb": np.array([10, 20])}, (0.5, -0.2, 1.3, 0.6))
    picture = np.full((100, 200, 3), 90, np.uint8)
    assert np.array_equal(explanation.draw(picture, 14), picture)
    rows, columns = np.nonzero((explanation.draw(picture, 16) != picture).any(axis=-1))
    # The box covers columns 100 to 259 and rows -20 to 59, so its lower left quarter covers columns 100 to 179 and rows
    # 20 to 59. The edges of the drawn quarter are blurred by 20 columns and 10 rows.
    np.testing.assert_allclose([rows.min(), rows.max()], [20, 59], atol=10)
    np.testing.assert_allclose([columns.min(), columns.max()], [100, 180], atol=20)
    assert np.array_equal(picture, np.full((100, 200, 3), 90))


def test_skeleton_is_drawn_on_the_person(tmp_path):
    """A single limb is drawn. In each frame, only the pixels around the limb's joints change."""
    joints = np.zeros((1, 6, 17, 3))
    joints[0, :, 5] = [(20 + 10 * t, 55, 1) for t in range(6)]  # left shoulder
    joints[0, :, 7] = [(20 + 10 * t, 105, 1) for t in range(6)]  # left elbow
    joints[0, :, 9] = (100, 100, 0.01)  # this score is too low for the joint to be drawn
    pictures = {}
    for name, poses in (("drawn", Poses(joints, 120, 160)), ("bare", None)):
        path = tmp_path / f"{name}.mp4"
        with AnnotatedVideo(path, EVEN, poses, COCO_17, class_names=NAMES, num_frames=6) as annotated:
            for _ in range(6):
                annotated.show(av.VideoFrame.from_ndarray(np.full((120, 160, 3), 90, np.uint8), format="rgb24"))
            annotated.write(3, [window(0)])
            annotated.write(6, [window(1)])
        with av.open(tmp_path / f"{name}.mp4") as container:
            pictures[name] = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    assert pictures["drawn"].shape == (6, 120, 160, 3)
    changed = np.abs(pictures["drawn"].astype(int) - pictures["bare"]).max(axis=-1) > 40
    for number in range(6):
        rows, columns = np.nonzero(changed[number, :110])  # the timeline is below these rows
        found = [columns.min(), rows.min(), columns.max(), rows.max()]
        x = 20 + 10 * number
        np.testing.assert_allclose(np.array(found), [x, 55, x, 105], atol=5)
    bars = pictures["bare"][:, :40].astype(int)
    assert np.abs(bars[2] - bars[0]).max() < 40 < np.abs(bars[3] - bars[2]).max()


def test_the_timeline_shows_each_window_in_its_place(tmp_path):
    with AnnotatedVideo(tmp_path / "a.mp4", EVEN, None, COCO_17, class_names=NAMES, num_frames=6) as annotated:
        for _ in range(6):
            annotated.show(av.VideoFrame.from_ndarray(np.full((240, 320, 3), 90, np.uint8), format="rgb24"))
        annotated.write(3, [window(0)])
        annotated.write(6, [window(3)])
    with av.open(tmp_path / "a.mp4") as container:
        last = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)][-1]
    assert last.shape == (240, 320, 3)
    for x, label in ((80, 0), (200, 3)):
        np.testing.assert_allclose(last[236, x], ImageColor.getrgb(class_colour(label)), atol=40)


@pytest.mark.parametrize("stem", ["10:30 \x1b[31m'x' 😀", "-rf\n", "x" * 248, os.fsdecode(b"\xff\xe9")])
def test_a_video_of_any_name_has_results_under_a_safe_name(tiny, trained, paths, tmp_path, capsys, stem):
    video = tmp_path / "videos" / f"{stem}.mp4"
    video.parent.mkdir()
    shutil.copy(paths[0] / f"{VIDEO}.mp4", video)
    np.savez(tmp_path / "poses.npz", keypoint=np.full((1, read_header(str(video)).frames, 17, 2), 50))
    (found,) = predicted(tiny, trained, tmp_path, video, "--pose", tmp_path / "poses.npz").values()
    assert found["video"] == str(video)
    out, err = capsys.readouterr()
    assert not any(char in out + err for char in "\x1b\udcff\x00")
    assert "rf\n" not in out + err
    assert {path.suffix for path in tmp_path.glob(f"{safe_stem(video)}.*")} == {".mp4", ".json", ".png"}


@pytest.mark.parametrize("unit", [Fraction(1, 1000), Fraction(1, 90_000), Fraction(1001, 30_000)])
def test_the_copy_keeps_the_times_of_the_video(tmp_path, unit):
    times = FrameTimes(np.array([0, 33, 66, 116, 616, 632, 700]), unit)
    with AnnotatedVideo(tmp_path / "a.mp4", times, None, COCO_17) as annotated:
        for _ in range(6):
            annotated.show(av.VideoFrame.from_ndarray(np.full((31, 45, 3), 90, np.uint8), format="rgb24"))
        annotated.write(6, [window(0)])
    copy = frame_times(str(tmp_path / "a.mp4"))
    assert [copy.start[n] * copy.unit for n in range(6)] == [int(times.start[n]) * unit for n in range(6)]
    header = read_header(str(tmp_path / "a.mp4"))
    assert (header.width, header.height) == (46, 32)  # H.264 needs an even width and an even height


def test_the_copy_of_a_turned_video_is_upright_even_if_the_skeleton_belongs_to_stored_frames(tmp_path):
    made = Made(turn=Turn.of_code("110"), pixel=Fraction(4, 3))
    video, stored = str(make(tmp_path, made)), Poses(np.zeros((1, 9, 17, 3)), 48, 64, "stored")
    for poses, size, turn in ((None, (48, 48), NO_TURN), (stored, (85, 48), made.turn)):
        image = None if poses is None else poses.image()
        with AnnotatedVideo(tmp_path / "copy.mp4", frame_times(video), poses, COCO_17, size, turn) as annotated:
            for frame in decode(video, 99, image):
                annotated.show(frame)
            annotated.write(9, [])
        with av.open(tmp_path / "copy.mp4") as container:
            picture = next(container.decode(video=0)).to_image()
        width, height = turn.size(*size)
        upright = picture.crop((0, picture.height - height - height % 2, width, picture.height - height % 2))
        assert number_of(np.asarray(upright.resize((48, 64)))) == 0


def test_colours_stay(tmp_path):
    with AnnotatedVideo(tmp_path / "red.mp4", EVEN, None, COCO_17) as annotated:
        annotated.show(av.VideoFrame.from_ndarray(np.full((480, 640, 3), (200, 30, 60), np.uint8), format="rgb24"))
        annotated.write(1, [window(2)])
    with av.open(tmp_path / "red.mp4") as container:
        (frame,) = container.decode(video=0)
        assert frame.colorspace == 1  # the video is tagged as BT.709
        np.testing.assert_allclose(frame.to_ndarray(format="rgb24")[300, 300], (200, 30, 60), atol=6)


def test_rgb_alone_needs_no_pose(tiny, paths, tmp_path):
    words, _ = rgb_network(tmp_path)
    video = paths[0] / f"{VIDEO}.mp4"
    bare = predicted(words, tmp_path / "net.safetensors", tmp_path / "bare", video)[VIDEO]
    boxed = predicted(words, tmp_path / "net.safetensors", tmp_path / "boxed", video, "--pose", paths[1])[VIDEO]
    assert bare["windows"][0].keys() >= {"rgb"}
    assert not bare["windows"][0].keys() & {"pose", "fused"}
    # with a skeleton, the RGB frames show the box around the person
    assert bare["windows"][0]["rgb"] != boxed["windows"][0]["rgb"]


MISTAKES = {
    "no video": ("{videos}/nobody.mp4 --pose {poses}", "there is no video"),
    "no videos": ("--pose {poses}", "no video is named"),
    "no pose file": ("{video} --pose {tmp}/none.json", "there is neither a folder nor a file"),
    "other pose file": ("{video} --pose {tmp}/notes.txt", "notes.txt is in no format that is known here"),
    "no such clip": ("{tmp}/stranger.mp4 --pose {poses}", "has no clip named stranger"),
    "evil pickle": ("{video} --pose {tmp}/evil.pkl", "evil.pkl cannot be read"),
    "wrong npz": ("{video} --pose {tmp}/wrong.npz", "wrong.npz: 'keypoint' is missing"),
    "no npz": ("{video} --pose {tmp}/fake.npz", "fake.npz cannot be read"),
    "other joints": (
        "{video} --pose {tmp}/joints.npz",
        "joints.npz has 28 joints per person, but experiment demo needs 17",
    ),
    "other length": ("{video} --pose {tmp}/short.npz", "the video has more than 7 frames, but its skeleton has 5"),
    "broken video": ("{tmp}/broken.mp4 --pose {tmp}/short.npz", "broken.mp4: the video "),
    "long window": ("{video} --pose {poses} --window 1000", "1 <= stride <= window <= 512"),
    "long stride": ("{video} --pose {poses} --window 8 --stride 9", "1 <= stride <= window"),
    "nobody": ("{video} --pose {tmp}/nobody.npz --per-person", "shows nobody for long enough to get a label"),
    "no people": ("{video} --pose {poses} --people 0", "--people 0: the number must be 1 or more"),
    "twice": ("{video} {tmp}/{name}.mp4 --pose {poses}", "two videos have the name"),
    "one npz": ("{video} {tmp}/broken.mp4 --pose {tmp}/short.npz", "of one video, but 2 videos are named"),
    "onto itself": ("{tmp}/{name}.mp4 --pose {poses} --out {tmp}", "the result would replace"),
    "no out": ("{video} --pose {poses} --out {tmp}/notes.txt", "notes.txt cannot be written"),
    "no checkpoint": ("{video} --pose {poses} --checkpoint {tmp}/none.pth", "there is no file"),
}


def test_a_folder_of_videos_of_which_one_is_broken(tiny, trained, paths, tmp_path, capsys):
    folder = tmp_path / "videos"
    folder.mkdir()
    (folder / "A.mp4").write_bytes((paths[0] / f"{VIDEO}.mp4").read_bytes()[:2000])
    (folder / f"{VIDEO}.mp4").write_bytes((paths[0] / f"{VIDEO}.mp4").read_bytes())
    (folder / "notes.txt").write_text("no video")
    out = ("--out", str(tmp_path / "out"), "--pose", str(paths[1]), "--window", "128")
    assert run_command(["predict", *tiny, "--checkpoint", str(trained), str(folder), *out]) == 2
    assert f"error: 1 of 2 videos have no result, such as {folder}/A.mp4: " in capsys.readouterr().err
    assert [path.stem for path in (tmp_path / "out").glob("*.json")] == [VIDEO]
    assert run_command(["predict", *tiny, "--checkpoint", str(trained), str(tmp_path), *out]) == 2
    assert f"{tmp_path} contains no video" in capsys.readouterr().err


def test_names_that_mean_something_to_rich(tiny, trained, paths, annotation, tmp_path, capsys):
    video = tmp_path / "[red] film [1].mp4"
    video.write_bytes((paths[0] / f"{VIDEO}.mp4").read_bytes())
    np.savez(tmp_path / "own.npz", keypoint=annotation["keypoint"], keypoint_score=annotation["keypoint_score"])
    found = predicted(tiny, trained, tmp_path / "out", video, "--pose", tmp_path / "own.npz", "--window", 128)
    assert list(found) == [video.stem]
    assert video.name in capsys.readouterr().out


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_one_sentence(tiny, trained, paths, annotation, tmp_path, capsys, monkeypatch, mistake):
    monkeypatch.setitem(sys.modules, "rtmlib", None)  # makes the import fail as if the extra were not installed
    words, sentence = MISTAKES[mistake]
    video = paths[0] / f"{VIDEO}.mp4"
    (tmp_path / "notes.txt").write_text("no skeleton")
    (tmp_path / "fake.npz").write_text("no skeleton")
    (tmp_path / "evil.pkl").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    for name in ("stranger", VIDEO):
        (tmp_path / f"{name}.mp4").write_bytes(video.read_bytes())
    (tmp_path / "broken.mp4").write_bytes(video.read_bytes()[:2000])
    np.savez(tmp_path / "wrong.npz", joints=np.zeros((1, 5, 17, 2)))
    np.savez(tmp_path / "joints.npz", keypoint=np.ones((1, annotation["total_frames"], 28, 2)))
    np.savez(tmp_path / "nobody.npz", keypoint=annotation["keypoint"] * 0)
    np.savez(tmp_path / "short.npz", keypoint=annotation["keypoint"][:, :5])
    words = words.format(videos=paths[0], video=video, poses=paths[1], tmp=tmp_path, name=VIDEO).split()
    rest = [] if "--checkpoint" in words else ["--checkpoint", str(trained)]
    out = [] if "--out" in words else ["--out", str(tmp_path / "out")]
    assert run_command(["predict", *tiny, *rest, *out, *words]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    assert sentence in error
    assert not [file for file in tmp_path.rglob("*.mp4*") if file.parent != tmp_path]


def long_video(path: Path, frames: int) -> Path:
    """Write a 1080p video that repeats the same second, and an .npz file with the skeletons of two people."""
    second, pixels = 30, np.kron(np.random.default_rng(0).integers(60, 200, (27, 48, 3)), np.ones((40, 40, 1)))
    part = path.with_name("second.mp4")
    with av.open(part, "w") as container:
        stream = container.add_stream("libx264", rate=30, options={"preset": "ultrafast", "bf": "0", "g": "30"})
        stream.width, stream.height, stream.pix_fmt = 1920, 1080, "yuv420p"
        for number in range(second):
            pixels[300:800, 100 : 300 + 30 * number] = (200, 30, 30)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels.astype(np.uint8), format="rgb24")))
        container.mux(stream.encode())
    with av.open(part) as source, av.open(path, "w") as container:
        given = source.streams.video[0]
        packets = [packet for packet in source.demux(given) if packet.size]
        stream = container.add_stream_from_template(given)
        for number in range(frames):
            packet = av.Packet(bytes(packets[number % second]))
            packet.pts = packet.dts = number
            packet.time_base, packet.stream = Fraction(1, 30), stream
            packet.is_keyframe = packets[number % second].is_keyframe
            container.mux(packet)
    joints = np.random.default_rng(1).uniform(-0.5, 0.5, (2, 1, 17, 2)) * (150, 450) + (500, 550)
    moved = joints + np.arange(frames)[:, None, None] % second * (20, 0)
    np.savez(path.with_suffix(".npz"), keypoint=moved.astype(np.float32))
    return path


def peak_of(tiny, trained, environment, video: Path) -> int:
    """Return the peak of the resident memory of `predict` on a video, in MiB."""
    words = ["--checkpoint", str(trained), "--pose", str(video.with_suffix(".npz")), "--out", str(video.parent / "out")]
    code = "import resource, sys; from trainer.cli import run_command; code = run_command(sys.argv[1:]); "
    code += "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss); sys.exit(code)"
    done = run_forked("-c", code, "predict", video, *tiny, *words, environment=environment, timeout=None)
    assert done.returncode == 0, done.stdout + done.stderr
    return int(done.stdout.splitlines()[-1]) >> 10


def test_memory_of_a_short_1080p_video(tiny, trained, environment, tmp_path):
    assert peak_of(tiny, trained, environment, long_video(tmp_path / "long.mp4", 150)) < 1500


@pytest.mark.soak
@pytest.mark.timeout(2400)
def test_memory_of_ten_minutes_of_1080p(tiny, trained, environment, tmp_path):
    video = long_video(tmp_path / "long.mp4", 18_000)
    assert peak_of(tiny, trained, environment, video) < 2048
    content = json.loads((tmp_path / "out" / "long.json").read_text())
    assert len(content["windows"]) == 562
    with av.open(tmp_path / "out" / "long.mp4") as container:
        assert container.streams.video[0].frames == 18_000


@pytest.mark.gpu
def test_a_gpu_says_what_eval_says_there(tiny, trained, paths, tmp_path):
    words = ["--device", "cuda", "--ranks", "1", "--set", "optim.precision=fp32", "--set", "compile=False"]
    arguments = [*tiny, *words]
    assert run_command(["eval", *arguments, "--checkpoint", str(trained), "--out", str(tmp_path / "eval")]) == 0
    scores = np.load(tmp_path / "eval" / "scores.npz")
    video = paths[0] / f"{VIDEO}.mp4"
    found = predicted(arguments, trained, tmp_path, video, "--pose", paths[1], "--window", 128)[VIDEO]
    row = scores["name"].tolist().index(VIDEO)
    for stream in ("rgb", "pose"):
        for guess in found["windows"][0][stream]:
            assert guess["probability"] == pytest.approx(scores[stream][row][guess["class"]], abs=1e-3)


def test_a_window_that_does_not_fit_into_memory(tiny, trained, paths, tmp_path, monkeypatch, capsys):
    def fail(batch, logits):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(scorer, "score_batch", fail)
    words = ["--checkpoint", str(trained), "--out", str(tmp_path), "--pose", str(paths[1]), "--device", "cpu"]
    assert run_command(["predict", *tiny, *words, str(paths[0] / f"{VIDEO}.mp4")]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == f"error: {NO_MEMORY}"
