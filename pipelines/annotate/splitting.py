"""Chooses the validation videos of your own data set, if the file of labels has no column for the split.

Videos of one group (a subject, a camera, a source, or copies of one recording) are never in both splits: a network
would recognise the person, the room or the recording, and the scores would say nothing about new people, rooms and
recordings.
"""

import os
import zlib
from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace

import numpy as np

from kernels.program import UserError
from pipelines.annotate.copies import Copies, describe, groups_of
from pipelines.annotate.labels import SPLITS, Labels

EVERY = 5  # one in five videos of each class is used for validation


def split_labels(labels: Labels, copies: Copies, say: Callable[[str], None]) -> Labels:
    """The labels with a split for each video. `copies`: what `find_copies` found, if the labels have no groups.

    `say` gets a sentence about groups and copies. Raises UserError if no video is left for one of the two splits.
    """
    copied = f"{describe(labels.videos, copies)}; " if copies else ""
    if labels.splits:
        crossing, what = _crossing(labels, copies)
        if crossing:
            say(
                f"warning: {copied}{len(crossing)} of {labels.splits.count('val')} validation videos, such as "
                f"{crossing[0]}, have {what} in training, so their scores will be too good; leave the column `split` "
                "out, and annotate chooses a split without this fault"
            )
        return labels
    groups: Sequence[Hashable] = labels.groups or groups_of(len(labels.videos), copies)
    splits = choose(labels.videos, labels.labels, groups)
    for split in SPLITS:
        if split not in splits:
            raise UserError(f"the labels leave no video for {split}; add a third column with train or val")
    if labels.groups:
        sizes = [len({group for group, each in zip(groups, splits, strict=True) if each == side}) for side in SPLITS]
        say(f"split: {sizes[0]} groups for training, {sizes[1]} others for validation")
    elif copies:
        say(f"{copied}all copies of a recording are on one side of the split")
    unseen = sorted(set(labels.labels) - {label for label, s in zip(labels.labels, splits, strict=True) if s == "val"})
    if unseen and len(unseen) < len(set(labels.labels)):
        names = [labels.class_names[label] if labels.class_names else str(label) for label in unseen]
        say(f"warning: {len(names)} of the classes have no validation video, such as {names[0]}")
    return replace(labels, splits=splits)


def _crossing(labels: Labels, copies: Copies) -> tuple[list[str], str]:
    """The validation videos that have a copy in training, or a video of the same group if the labels have groups."""
    groups: Sequence[Hashable] = labels.groups or groups_of(len(labels.videos), copies)
    lines = list(zip(labels.videos, groups, labels.splits, strict=True))
    trained = {group for _, group, split in lines if split == "train"}
    what = "videos of their group" if labels.groups else "a copy or a mirror image"
    return [video for video, group, split in lines if split == "val" and group in trained], what


def choose(videos: Sequence[str], labels: Sequence[int], groups: Sequence[Hashable]) -> list[str]:
    """Choose a split for each video, train or val, so that all videos of a group have the same split.

    In each class, about one video in five is for validation, but at least one if the class has several groups. The
    choice depends only on the names, labels and groups of the videos. If there is only one group, all videos are for
    training.
    """
    members: dict[Hashable, list[int]] = defaultdict(list)
    for place in sorted(range(len(videos)), key=lambda place: (zlib.crc32(os.fsencode(videos[place])), videos[place])):
        members[groups[place]].append(place)
    counts = np.array([np.bincount(np.take(labels, places), minlength=max(labels) + 1) for places in members.values()])
    missing = np.maximum(1, counts.sum(axis=0) // EVERY)  # how many videos of each class validation still needs
    training = counts.sum(axis=0)  # how many videos of each class are left for training
    chosen = np.zeros(len(counts), bool)
    # The first group of each class is considered last, so each class usually keeps a group for training.
    first_of_class = (counts > 0).argmax(axis=0)
    for number in [*np.setdiff1d(np.arange(len(counts)), first_of_class), *np.unique(first_of_class)]:
        useful = np.minimum(counts[number], missing.clip(0)).sum()
        if 2 * useful > counts[number].sum() and ((training > counts[number]) | (counts[number] == 0)).all():
            chosen[number] = True
            missing, training = missing - counts[number], training - counts[number]
    if not chosen.any() and len(counts) > 1:
        chosen[counts.sum(axis=1).argmin()] = True
    val = {place for number, places in enumerate(members.values()) if chosen[number] for place in places}
    return ["val" if place in val else "train" for place in range(len(videos))]
