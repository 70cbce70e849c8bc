"""Windows of a video: where they begin, which frames and joints each window gets, and skeletons of another length."""

from pathlib import Path

import av
import numpy as np
import pytest
import torch

from pipelines.config import ClipConfig
from pipelines.loader import Loader
from pipelines.packs.format import PackSettings
from pipelines.packs.source import PackFrames
from pipelines.read_ahead import reader_threads
from pipelines.skeleton import COCO_17
from pipelines.videos.container import VideoError
from pipelines.videos.decode import SLACK, decode
from pipelines.videos.turn import AnnotatedImage
from pipelines.videos.windows import WindowFrames, window_table, windows_of

SIZE = (160, 120)
CONFIG = ClipConfig(
    skeleton=COCO_17, rgb_frames=4, pose_frames=8, rgb_size_val=96, heatmap_size_val=24, box_pixels=96, quality=2
)


@pytest.mark.parametrize("total", [*range(1, 12), 64, 97])
@pytest.mark.parametrize(("window", "stride"), [(1, 1), (5, 5), (6, 4), (64, 32)])
def test_windows_cover_every_frame(total, window, stride):
    windows = windows_of(total, window, stride)
    assert {frame for start, end in windows for frame in range(start, end)} == set(range(total))
    assert [start for start, _ in windows] == [stride * number for number in range(len(windows))]
    assert all(end - start == window for start, end in windows[:-1])
    assert windows[-1][1] == total
    assert all(end < total for _, end in windows[:-1])


def loader_of(video: Path, joints: np.ndarray, windows, seen: list) -> Loader:
    table = window_table(joints, AnnotatedImage(*SIZE), windows)
    frames = WindowFrames(
        frames=decode(str(video), windows[-1][1] + SLACK, AnnotatedImage(*SIZE)),
        table=table,
        windows=windows,
        settings=PackSettings.of(CONFIG),
        each=seen.append,
    )
    return loader_on(table, frames)


def loader_on(table, frames) -> Loader:
    values = {"rows": np.arange(len(table)), "config": CONFIG, "coarse_map": (0,) * 4, "batch_size": 1, "threads": 1}
    return Loader(table=table, frames=frames, train=False, device=torch.device("cpu"), **values)


def test_each_window_samples_its_own_frames(film, tmp_path):
    video = film.write(tmp_path / "film.mp4", film.frames(50, *SIZE), preset="ultrafast", crf="10")
    windows, seen = windows_of(50, 20, 12), []
    # without people, the network sees the whole picture
    loader = loader_of(video, np.zeros((0, 50, 17, 3)), windows, seen)
    starts = set()
    for step, batch in enumerate(loader.epoch(0)):
        start, end = windows[step]
        numbers = [film.number(picture, (0, 0, 96, 96)) for picture in batch.rgb[0].numpy()]
        assert numbers == (start + loader.plan(0, step).rgb_frames[0]).tolist()
        assert len(seen) == end  # frames after the end of the window have not been decoded yet
        starts.add(start)
        assert not batch.heatmap.any()
    assert starts == {0, 12, 24, 36}


def test_a_window_is_what_its_clip_in_a_pack_is(scene):
    work = scene(24, 6)
    table, (pack, _) = work.table(), work.prepare(settings=PackSettings.of(CONFIG))
    packed = list(loader_on(table, PackFrames(table, pack)).epoch(0))
    for row, length in enumerate((24, 6)):
        loader = loader_of(work.video(row), table.clip_joints(row), windows_of(length, 64, 32), [])
        (batch,) = loader.epoch(0)
        assert torch.equal(batch.rgb, packed[row].rgb)
        assert torch.equal(batch.heatmap, packed[row].heatmap)


def test_each_window_has_its_own_joints(film, tmp_path):
    video = film.write(tmp_path / "film.mp4", film.frames(50, *SIZE), preset="ultrafast")
    joints, windows = np.concatenate([film.person(50, *SIZE, seed=seed) for seed in (0, 1)]), windows_of(50, 20, 12)
    for (start, end), batch in zip(windows, loader_of(video, joints, windows, []).epoch(0), strict=True):
        part = film.annotation("part", joints[:, start:end], *SIZE)
        part["keypoint"] = joints[:, start:end, :, :2]
        (tmp_path / str(start)).mkdir()
        table = film.table(tmp_path / str(start), [part])
        assert torch.equal(batch.heatmap, loader_on(table, NoFrames()).epoch(0).__next__().heatmap)


class NoFrames:
    """A source that returns only black frames, for a test that looks only at heatmaps."""

    def decode(self, plans, decoding):
        plans(0)
        return self

    def next(self) -> torch.Tensor:
        return torch.zeros(CONFIG.rgb_frames, 96, 96, 3, dtype=torch.uint8)


def test_videos_and_skeletons_of_other_lengths(film, tmp_path):
    video = film.write(tmp_path / "film.mp4", film.frames(30, *SIZE), preset="ultrafast")
    for length in (28, 32):  # the skeleton may have up to two frames more or fewer than the video
        assert len(list(loader_of(video, film.person(length, *SIZE), windows_of(length, 16, 8), []).epoch(0))) == 3
    for length, sentence in ((33, "the video ends after 30 of 33 frames"), (27, "the video has more than 29 frames")):
        with pytest.raises(VideoError, match=sentence):
            list(loader_of(video, film.person(length, *SIZE), windows_of(length, 16, 8), []).epoch(0))


def test_few_frames_wait(film, tmp_path):
    video = film.write(tmp_path / "film.mp4", film.frames(200, *SIZE), preset="ultrafast")
    loader = loader_of(video, film.person(200, *SIZE), windows_of(200, 16, 8), [])
    with reader_threads() as readers:
        decoder = loader.frames.decode(all_plans(loader), loader.decoding(readers))
        for _ in range(24):
            decoder.next()
            assert len(decoder.frames_in_memory) <= 2 * CONFIG.rgb_frames
    assert not decoder.frames_in_memory
    assert all(isinstance(frame, av.VideoFrame) for frame in [decoder.last_frame])


def all_plans(loader: Loader):
    def plans(step: int):
        if step >= loader.num_batches:
            raise StopIteration
        return loader.plan(0, step)

    return plans
