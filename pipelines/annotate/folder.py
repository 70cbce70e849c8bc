"""Skeletons of videos from a folder of files, or from one file, in any format of formats/.

In a folder, the files of a video are found by name: NAME.json, .npz, .txt or .skeleton; a folder NAME with one file,
or with one for each frame; files NAME_000012.json for each frame; or a COCO data set whose images lie in a folder NAME
or are called NAME_000012.jpg.
"""

import re
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from kernels.program import UserError
from pipelines.annotate.formats import coco
from pipelines.annotate.formats.json_file import load_json
from pipelines.annotate.formats.recognise import EXTENSIONS, KNOWN, read_recording
from pipelines.annotate.formats.recording import Recording
from pipelines.annotate.formats.settle import likely_layout, settle
from pipelines.annotate.keypoints import Poses, read_npz
from pipelines.annotate.tracking import Person, follow
from pipelines.videos.find import clip_name
from pipelines.videos.header import Header
from pipelines.videos.turn import Rotation, same_shape

FRAME = re.compile(r"(.+?)[_-]?\d+(_keypoints)?")  # the name of a file or image of one frame
WITHOUT_PEOPLE = 17  # the number of joints that is used if nobody was detected in any video


@dataclass
class PoseFolder:
    """The skeletons in a folder or in one file. `survey` must be called once, before `poses`.

    folder: the folder; or a file with the skeletons of one video, or with a COCO data set of several videos.
    max_people: maximum number of people in a video. rotation: how the annotated images are turned (AnnotatedImage).
    layout: the joint layout of the skeletons, or '' if it is not known.
    """

    folder: Path
    max_people: int
    rotation: Rotation = "shown"
    layout: str = ""
    recordings: dict[str, Recording] = field(default_factory=dict)
    arrays: dict[str, Path] = field(default_factory=dict)  # the .npz file of each video, by the name of the video
    num_joints: int = WITHOUT_PEOPLE

    def __post_init__(self) -> None:
        if not self.folder.exists():
            raise UserError(
                f"there is neither a folder nor a file {self.folder}; give --poses a folder with NAME.json or NAME.npz "
                "for each video"
            )

    def survey(self, headers: dict[str, Header], say: Callable[[str], None]) -> None:
        """Find and read the files of all videos, and report their formats. Raises UserError.

        headers: the header of each video, by name.
        """
        files = find_files(self.folder, list(headers)) if self.folder.is_dir() else self._only_file(list(headers))
        for name, own in files.items():
            if own[0].suffix == ".npz":
                self.arrays[name] = own[0]
            else:
                self.recordings[name] = read_recording(own, name)
        missing = [name for name in headers if name not in files]
        if missing:
            used = {file for own in files.values() for file in own}
            self.recordings |= self._data_sets(missing, used)
        missing = [name for name in missing if name not in self.recordings]
        if missing:
            raise UserError(
                f"{self.folder} has neither {missing[0]}.json nor {missing[0]}.npz, nor any other file with poses of "
                f"{missing[0]} ({KNOWN}); leave out --poses to estimate skeletons"
            )
        settle(self.recordings, {name: header.frames for name, header in headers.items()}, say)
        if self.arrays:
            say(f"poses: .npz, for {len(self.arrays)} of {len(headers)} videos")
        counts = {name: next(iter(r.num_joints())) for name, r in self.recordings.items() if r.detections}
        odd = [name for name, count in counts.items() if count != next(iter(counts.values()))]
        if odd:
            first = next(iter(counts))
            raise UserError(
                f"the skeletons of {first} have {counts[first]} joints, but those of {odd[0]} have {counts[odd[0]]}; "
                "make an annotation file for each joint layout"
            )
        self.num_joints = next(iter(counts.values()), WITHOUT_PEOPLE)
        self._name_layout(say)

    def _only_file(self, names: list[str]) -> dict[str, list[Path]]:
        """Assign the only file to the only video.

        Returns an empty dict if there are several videos, or if the file is a data set that names its videos.
        """
        return {names[0]: [self.folder]} if len(names) == 1 and not self._data_sets(names, set()) else {}

    def _name_layout(self, say: Callable[[str], None]) -> None:
        layouts = {recording.layout for recording in self.recordings.values() if recording.detections}
        if layouts == {""}:
            people = [detection.joints for r in self.recordings.values() for detection in r.detections]
            self.layout = likely_layout(np.stack(people[:5000]))
            if self.layout:
                say(f"the {self.num_joints} joints have no names; the lengths of limbs suggest {self.layout}")
        elif len(layouts) == 1:
            self.layout = layouts.pop()

    def _data_sets(self, names: list[str], used: set[Path]) -> dict[str, Recording]:
        """The recordings of these videos from COCO data sets that contain several videos."""
        recordings: dict[str, Recording] = {}
        for file in sorted(self.folder.rglob("*.json")) if self.folder.is_dir() else [self.folder]:
            content = load_json(file) if file not in used and file.suffix == ".json" else None
            if not isinstance(content, dict) or not isinstance(content.get("annotations"), list):
                continue
            if not isinstance(content.get("images"), list):
                continue
            images = [str(image.get("file_name")) for image in content["images"] if isinstance(image, dict)]
            for name, part in coco.parts_of(content, videos_of_images(images, names)).items():
                if name in recordings:
                    raise UserError(f"{file} and another file have poses of {name}; keep one of them")
                recording = coco.read(part, None)
                assert recording is not None
                recording.file = str(file)
                recordings[name] = recording
        return recordings

    def poses(self, name: str, header: Header) -> tuple[Path, Poses]:
        """The skeletons of a video, and the file or folder that they come from. Raises UserError."""
        width, height = (header.width, header.height) if self.rotation == "shown" else header.stored
        if name in self.arrays:
            return self.arrays[name], read_npz(self.arrays[name], (height, width), self.rotation)
        recording = self.recordings[name]
        if recording.size is not None:
            image_height, image_width = recording.size
            if not same_shape((width, height), (image_width, image_height)):
                raise UserError(
                    f"{recording.file}: the poses of {name} belong to images of {image_width}x{image_height} pixels, "
                    f"but the video has {width}x{height}; give the file that was made from this video"
                )
            height, width = recording.size
        scale = np.array([width, height, 1.0] if recording.unit == "shares" else [1.0, 1.0, 1.0])
        frames: list[list[Person]] = [[] for _ in range(header.frames)]
        for detection in recording.detections:
            person = Person((detection.joints * scale).astype(np.float32), detection.score, detection.track)
            frames[detection.frame].append(person)
        joints = follow(frames, self.max_people, self.num_joints)
        return self.folder, Poses(joints, height, width, self.rotation)


def find_files(folder: Path, names: list[str]) -> dict[str, list[Path]]:
    """The files of each video by its name; videos without files are left out. Raises UserError.

    Files are looked up by the video's name with its folders first, and then by the name alone. No two videos share a
    file.
    """
    exact: dict[str, list[Path]] = defaultdict(list)
    frames: dict[str, list[Path]] = defaultdict(list)
    videos = {clip_name(name) for name in names}
    keys = videos | {name.rpartition("/")[2] for name in videos}
    own_files = [file for file in sorted(folder.rglob("*")) if file.suffix in EXTENSIONS and file.is_file()]
    stems = [file.relative_to(folder).with_suffix("").as_posix() for file in own_files]
    # The names of videos in this function have no extension. NAME.mp4.json can belong to the video NAME or to a video
    # with the odd name NAME.mp4. It belongs to NAME if the name of every file contains the extension of a video.
    with_extension = all(clip_name(stem) != stem for stem in stems)
    likely = [clip_name(stem) if with_extension else stem for stem in stems]
    likely_keys = set(likely)
    for file, stem, key in zip(own_files, stems, likely, strict=True):
        place = file.relative_to(folder)
        exact[key].append(file)
        other = stem if with_extension else clip_name(stem)
        if other not in likely_keys:
            exact[other].append(file)
        match = FRAME.fullmatch(place.stem)
        if match and clip_name(stem) not in keys and place.stem not in keys:
            frames[(place.parent / match[1]).as_posix()].append(file)
        frames[place.parent.as_posix()].append(file)
    files = {}
    for name in names:
        for key in (clip_name(name), clip_name(name).rpartition("/")[2]):
            own = _own(name, key, exact, frames, videos)
            if own:
                files[name] = own
                break
    owners: dict[Path, str] = {}
    for name, own in files.items():
        if owners.setdefault(own[0], name) != name:
            raise UserError(
                f"{own[0]} would be the skeleton of two videos, {owners[own[0]]} and {name}; put the skeletons into "
                "folders like those of the videos"
            )
    return files


def _own(
    name: str, key: str, exact: dict[str, list[Path]], frames: dict[str, list[Path]], videos: set[str]
) -> list[Path]:
    """The files that `key` refers to, for the video `name`. An empty list if there are none.

    If `key` has no folder, it also refers to files in sub-folders, such as sub/KEY.json. Such a file is left out if
    one of the `videos` is called sub/KEY.
    """
    deep = [place for place in exact if "/" not in key and place.endswith(f"/{key}") and place not in videos]
    for places, each_frame in ((exact, False), (frames, True)):
        found = [places[place] for place in dict.fromkeys((key, *deep, f"labels/{key}")) if place in places]
        if each_frame and not found:
            found = [files for place, files in places.items() if "/" not in key and place.endswith(f"/{key}")]
        if len(found) > 1 or (found and not each_frame and len(found[0]) > 1):
            first, second = (found[0] + (found[1] if len(found) > 1 else []))[:2]
            raise UserError(f"{first} and {second} both have the name of the video {name}; keep one of them")
        if found:
            return found[0]
    return []


def videos_of_images(images: list[str], names: list[str]) -> dict[str, str]:
    """The name of the video to which each image belongs. Images that belong to no video are left out.

    The video has the name of the image's folder, or the name of the image without its frame number.
    """
    video_of = {clip_name(name): name for name in names}
    by_file: dict[str, list[str]] = defaultdict(list)
    for name in names:
        by_file[clip_name(name).rpartition("/")[2]].append(name)
    result = {}
    for image in images:
        path = image.replace("\\", "/")
        parent, _, stem = path.rpartition(".")[0].rpartition("/")
        match = FRAME.fullmatch(stem)
        candidates = [parent, f"{parent}/{match[1]}".strip("/") if match else ""]
        for place in candidates:
            alone = by_file.get(clip_name(place).rpartition("/")[2], [])
            video = video_of.get(clip_name(place)) or (alone[0] if len(alone) == 1 else None)
            if video:
                result[image] = video
                break
    return result
