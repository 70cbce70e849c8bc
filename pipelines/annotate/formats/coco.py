"""COCO keypoints: a list of results, or a data set with `images` and `annotations`.

Source: docs/sources.md, "Formats of poses". A person's `keypoints` are x, y, v, x, y, v, ..., where v is a score, or a
flag: 0 not labelled, 1 hidden, 2 visible. AlphaPose writes the same list of results, with names of images.
"""

from collections import defaultdict
from typing import Any

from kernels.program import UserError
from pipelines.annotate.formats.recording import OtherFormat, Recording, frame_number, layout_of, triples

LAYOUTS = ("coco17", "halpe26", "coco133body")
FRAME_KEYS = ("frame", "frame_id", "image_id")


def read(content: Any, number: int | None) -> Recording | None:
    """The poses in the content of a JSON file about one video, or None if it has another format.

    number: the frame number for entries that do not contain one. Raises UserError.
    """
    entries = content.get("annotations") if isinstance(content, dict) else content
    if not isinstance(entries, list):
        return None
    images = names_of_images(content)
    if entries and not any(isinstance(entry, dict) and "keypoints" in entry for entry in entries):
        if any(isinstance(entry, dict) and "bbox" in entry for entry in entries):
            raise OtherFormat("it has boxes but no keypoints, so it is the output of a detector")
        return None
    alphapose = any("idx" in entry or "box" in entry for entry in entries if isinstance(entry, dict))
    recording = Recording("AlphaPose" if alphapose else "COCO keypoints", clip_scores=alphapose)
    for place, entry in enumerate(entries):
        try:
            _add(recording, entry, images, number)
        except OtherFormat:
            raise
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise UserError(f"entry {place}: {error}") from None
    recording.frames |= {frame_number(name) for name in images.values()}
    recording.frames |= set() if number is None else {number}
    recording.complete = bool(images)
    recording.layout = layout_of(next(iter(recording.num_joints()), 0), LAYOUTS)
    recording.size = size_of_images(content)
    return recording


def _add(recording: Recording, entry: Any, images: dict[str, Any], number: int | None) -> None:
    if not isinstance(entry, dict) or "keypoints" not in entry:
        raise UserError("there are no keypoints")
    frames = [entry[key] for key in FRAME_KEYS if key in entry]
    if not frames and number is None:
        raise UserError("there is neither frame nor image_id")
    frame = images.get(str(frames[0]), frames[0]) if frames else number
    score = entry.get("score")
    track = entry.get("track_id")
    recording.add(
        frame_number(frame),
        triples(entry["keypoints"]),
        None if score is None else float(score),
        None if track is None else str(track),
    )


def names_of_images(content: Any) -> dict[str, Any]:
    """The file name of each image, by the image's id, from the list `images` of a data set."""
    images = content.get("images") if isinstance(content, dict) else None
    listed = [image for image in images if isinstance(image, dict)] if isinstance(images, list) else []
    return {str(image["id"]): image.get("file_name") for image in listed if "id" in image}


def size_of_images(content: Any) -> tuple[int, int] | None:
    """(height, width) of the images of a data set, if all of them have the same size. Otherwise None."""
    images = content.get("images") if isinstance(content, dict) else None
    listed = [image for image in images if isinstance(image, dict)] if isinstance(images, list) else []
    sizes = {(image.get("height"), image.get("width")) for image in listed}
    height, width = sizes.pop() if len(sizes) == 1 else (None, None)
    return (height, width) if isinstance(height, int) and isinstance(width, int) and min(height, width) > 0 else None


def parts_of(content: Any, video_of: dict[str, str]) -> dict[str, dict]:
    """Split a data set of several videos into one data set for each video.

    video_of: the video of each image, by the image's file name. Images without an entry are left out.
    """
    images = names_of_images(content)
    parts: dict[str, dict] = defaultdict(lambda: {"images": [], "annotations": []})
    for image in content["images"]:
        if isinstance(image, dict) and (video := video_of.get(str(image.get("file_name")))):
            parts[video]["images"].append(image)
    for entry in content["annotations"]:
        name = images.get(str(entry.get("image_id"))) if isinstance(entry, dict) else None
        if video := video_of.get(str(name)):
            parts[video]["annotations"].append(entry)
    return dict(parts)
