"""All experiments by name. A variant is a `replace(...)` of another experiment. Comments name the sources of values.

Sources: docs/sources.md, "Training samples", "Guide recipes", "PCAN recipe", "Staged recipe" and "EPAM-Net".
"""

from dataclasses import replace

from models.classes import MA52, MA52_NAMES, NTU60_NAMES, NTU60_SEMANTIC8, NTU120_NAMES, NTU120_SEMANTIC8
from models.config import (
    RESNET_POSE,
    RESNET_RGB,
    EpamConfig,
    PcanConfig,
    RGBPoseConfig,
    SingleStreamConfig,
    X3DPairConfig,
    X3DStreamConfig,
)
from pipelines.config import ClipConfig, DataConfig
from pipelines.demo.classes import COARSE_MAP, FINE_NAMES, DemoConfig
from pipelines.skeleton import COCO_17, COCO_17_POSEC3D, OPENPOSE_28, OPENPOSE_28_PUBLISHED
from trainer.config import Experiment, OptimConfig, ValidationConfig

NTU60_DATA = DataConfig(
    annotations="data/skeleton/ntu60_xsub.pkl",
    videos="data/nturgbd_videos",
    split="xsub",
    num_classes=60,
    coarse_map=NTU60_SEMANTIC8,
    class_names=NTU60_NAMES,
)
# The splits are xsub and xset. The videos of NTU-60 are part of NTU-120, and all videos are in one folder.
NTU120_DATA = DataConfig(
    annotations="data/skeleton/ntu120_2d.pkl",
    videos="data/nturgbd_videos",
    split="xsub",
    num_classes=120,
    coarse_map=NTU120_SEMANTIC8,
    class_names=NTU120_NAMES,
)
MA52_DATA = DataConfig(
    annotations="data/ma52/MA-52_openpose_28kp/MA52_train.pkl",
    val_annotations="data/ma52/MA-52_openpose_28kp/MA52_val.pkl",
    videos="data/ma52/raw_videos",
    num_classes=52,
    coarse_map=MA52,
    class_names=MA52_NAMES,
)
# RGBPoseConv3D's sampling of frames, with the COCO joints of NTU's published skeletons (docs/sources.md, "Training
# samples").
RGBPOSE_CLIP = ClipConfig(skeleton=COCO_17, rgb_frames=8, pose_frames=32, sigma=0.7)

# The guide's experiment 1, with the values that its text gives. The guide's script prints these values too, but trains
# with PCAN's values: batch 10, lr 7.5e-3, 30 epochs, milestones 10 and 20 (docs/sources.md, "Guide recipes").
MA52_RUN = Experiment(
    name="ma52",
    data=MA52_DATA,
    clip=replace(RGBPOSE_CLIP, skeleton=OPENPOSE_28),
    model=RGBPoseConfig(
        loss_weights=(1.0, 1.0, 0.5, 0.8),
        interaction=True,
        pcan=PcanConfig(),
    ),
    optim=OptimConfig(batch_size=16, num_epochs=50, lr=1e-3, schedule="constant"),
    val=ValidationConfig(batch_size=16, begin=3),
)
# PCAN as published: its schedule (docs/sources.md, "PCAN recipe"), no swap of left and right fingers in mirrored clips,
# and a diversity loss without gradient. Start training with --init from the merged weights of two single streams.
MA52_PCAN = replace(
    MA52_RUN,
    name="ma52_pcan",
    clip=replace(RGBPOSE_CLIP, skeleton=OPENPOSE_28_PUBLISHED),
    model=replace(
        MA52_RUN.model,
        loss_weights=(1.0, 1.0, 1.0, 1.0),
        pcan=PcanConfig(diversity="published"),
    ),
    optim=OptimConfig(batch_size=10, num_epochs=30, lr=7.5e-3, schedule="multistep", milestones=(10, 20)),
    val=ValidationConfig(batch_size=10, begin=3),
)

# All methods that helped other teams on MA-52 or are meant for rare classes, in one run (docs/training.md, "What won on
# MA-52"): the losses and heads of the winner of the challenge in 2024, with its weights; class balancing and logit
# adjustment, each at a quarter of full strength, because half of F1 mean rewards frequent classes; EMA, label
# smoothing and augmentation. The network and the schedule are those of PCAN. Start training with --init, as for
# ma52_pcan.
MA52_BEST = replace(
    MA52_RUN,
    name="ma52_best",
    data=replace(MA52_DATA, balance=0.25),
    clip=replace(MA52_RUN.clip, color_jitter=0.4, erasing=0.25, joint_noise=0.5, joint_drop=0.05),
    model=replace(
        MA52_RUN.model,
        loss_weights=(1.0, 1.0, 0.5, 0.5),
        f1_weight=1.0,
        frame_weight=0.5,
        label_smoothing=0.1,
    ),
    optim=replace(MA52_PCAN.optim, ema=0.999, logit_adjustment=0.25),
    val=ValidationConfig(batch_size=10, begin=3),
)

# The guide's experiment 2, with the values that its text gives. The guide's configuration file differs: batch 20, 30
# epochs, eta_min 1e-5 and clip_norm 20, and it starts training from its own checkpoint of epoch 26.
NTU60 = Experiment(
    name="ntu60",
    data=NTU60_DATA,
    clip=RGBPOSE_CLIP,
    model=RGBPoseConfig(
        loss_weights=(1.0, 1.2, 0.5, 0.8),
        interaction=True,
        pcan=PcanConfig(),
    ),
    optim=OptimConfig(batch_size=24, num_epochs=80, lr=1e-3, schedule="cosine"),
    val=ValidationConfig(batch_size=24),
)

# Experiment 3 of the guide, for which the guide's description and its configuration file agree (docs/sources.md, "Guide
# recipes"). The guide's loss has terms with different coarse maps; here all terms use the same map.
NTU60_X3D = Experiment(
    name="ntu60_x3d",
    data=NTU60_DATA,
    clip=ClipConfig(skeleton=COCO_17, rgb_frames=16, pose_frames=48, sigma=0.6),
    model=X3DPairConfig(loss_weights=(1.0, 1.5, 0.6, 1.2), pcan=PcanConfig()),
    optim=OptimConfig(
        batch_size=32,
        num_epochs=80,
        lr=0.012,
        schedule="cosine",
        eta_min=1e-6,
        warmup_epochs=5,
        weight_decay=2e-4,
    ),
    val=ValidationConfig(batch_size=32, begin=5, every=2, patience=15, min_delta=5e-4),
)
# The guide's experiment 3 with the values of its section "advanced".
NTU60_X3D_TUNED = replace(
    NTU60_X3D,
    name="ntu60_x3d_tuned",
    optim=replace(NTU60_X3D.optim, num_epochs=70, lr=0.004, eta_min=5e-5, weight_decay=4e-4, clip_norm=30.0),
    val=replace(NTU60_X3D.val, patience=8),
)

# The networks of ntu60_x3d for your own videos, whose annotations `python -m pipelines.annotate` makes. Start training
# with --init from a checkpoint of ntu60_x3d.
CUSTOM = Experiment(
    name="custom",
    data=DataConfig(
        annotations="data/custom/annotations.pkl",
        videos="data/custom/videos",
        split="own",
        num_classes=2,
        coarse_map=(),
        classes_from_file=True,
        balance=0.5,
    ),
    clip=NTU60_X3D.clip,
    model=X3DPairConfig(num_coarse=0),
    optim=NTU60_X3D.optim,
    val=replace(NTU60_X3D.val, begin=1, every=1),
)

# MMAction2's recipe in three stages, which reaches a top-1 of 96.6 %: train ntu60_rgb and ntu60_pose, merge them with
# `python -m models.weights merge`, and fine-tune ntu60_rgbpose with --init (docs/sources.md, "Staged recipe"). Each of
# the recipe's 18 epochs passes over the data ten times, so there are 180 epochs here. As in the recipe, the learning
# rate changes at every step.
NTU60_RGB = Experiment(
    name="ntu60_rgb",
    data=NTU60_DATA,
    clip=replace(RGBPOSE_CLIP, rgb_size_val=224),
    model=SingleStreamConfig(stream="rgb", path=RESNET_RGB),
    optim=OptimConfig(batch_size=96, num_epochs=180, lr=0.15, schedule="cosine_per_step"),
    val=ValidationConfig(batch_size=96, begin=10, every=10, metric="acc/rgb_top1"),
)
NTU60_POSE = Experiment(
    name="ntu60_pose",
    data=NTU60_DATA,
    clip=replace(RGBPOSE_CLIP, sigma=0.6),
    model=SingleStreamConfig(stream="pose", path=RESNET_POSE),
    optim=OptimConfig(batch_size=128, num_epochs=180, lr=0.2, schedule="cosine_per_step", weight_decay=3e-4),
    val=ValidationConfig(batch_size=128, begin=10, every=10, metric="acc/pose_top1"),
)
# PoseC3D's stream of limbs. `fuse` adds its scores to those of the joints (ntu60_pose), or to those of RGB and joints
# (docs/sources.md, "Limb streams"). Published networks halve the number of frames in their last stage; our networks do
# not.
NTU60_POSE_LIMB = replace(
    NTU60_POSE,
    name="ntu60_pose_limb",
    clip=replace(NTU60_POSE.clip, skeleton=COCO_17_POSEC3D, pose_frames=48, joints=False, limbs=True),
    optim=replace(NTU60_POSE.optim, num_epochs=240),
)
# A network for the limbs of MA-52. No paper gives values for it, so it has the recipe of ntu60_pose. It also has a
# coarse classifier, because F1 mean needs coarse scores.
MA52_POSE_LIMB = replace(
    NTU60_POSE,
    name="ma52_pose_limb",
    data=MA52_DATA,
    clip=replace(NTU60_POSE.clip, skeleton=OPENPOSE_28, joints=False, limbs=True),
    model=replace(NTU60_POSE.model, coarse_weight=0.5),
)
NTU60_RGBPOSE = Experiment(
    name="ntu60_rgbpose",
    data=NTU60_DATA,
    clip=RGBPOSE_CLIP,
    model=RGBPoseConfig(num_coarse=0),
    optim=OptimConfig(batch_size=48, num_epochs=20, lr=7.5e-3, schedule="multistep", milestones=(12, 16)),
    val=ValidationConfig(batch_size=48),
)

# EPAM-Net's joint training of both streams (docs/sources.md, "EPAM-Net"): the RGB stream uses every third frame of the
# pose stream, there is no random crop, and validation uses 224 px, like training. Start training with --init, either
# from published single streams, merged by `python -m models.weights merge`, or from a snapshot of ntu60_x3d, whose
# streams are independent. The authors of EPAM-Net cropped their videos to the person beforehand.
NTU60_EPAM = Experiment(
    name="ntu60_epam",
    data=NTU60_DATA,
    clip=ClipConfig(
        skeleton=COCO_17,
        rgb_frames=16,
        pose_frames=48,
        sigma=0.6,
        rgb_size_val=224,
        heatmap_size_val=56,
        aligned=True,
        crop=False,
    ),
    model=EpamConfig(num_coarse=0),
    optim=OptimConfig(batch_size=24, num_epochs=10, lr=1.5e-3, schedule="cosine_per_step", weight_decay=3e-4),
    val=ValidationConfig(batch_size=24, metric="acc/sum_top1"),
)

# NTU-120 with the recipes of NTU-60, because no paper gives values for NTU-120.
NTU120, NTU120_X3D, NTU120_RGB, NTU120_POSE, NTU120_POSE_LIMB, NTU120_RGBPOSE = (
    replace(experiment, name=experiment.name.replace("ntu60", "ntu120"), data=NTU120_DATA)
    for experiment in (NTU60, NTU60_X3D, NTU60_RGB, NTU60_POSE, NTU60_POSE_LIMB, NTU60_RGBPOSE)
)

# The demo runs the same code as the large experiments on generated data, and takes minutes on two CPU cores.
DEMO = Experiment(
    name="demo",
    data=DataConfig(
        annotations="data/demo/annotations.pkl",
        videos="data/demo/videos",
        split="xsub",
        num_classes=len(FINE_NAMES),
        coarse_map=COARSE_MAP,
        class_names=FINE_NAMES,
        demo=DemoConfig(),
    ),
    clip=ClipConfig(
        skeleton=COCO_17,
        rgb_frames=4,
        pose_frames=12,
        rgb_size=64,
        rgb_size_val=80,
        heatmap_size=20,
        heatmap_size_val=24,
        box_pixels=112,
    ),
    model=X3DPairConfig(
        loss_weights=(1.0, 1.5, 0.6, 1.2),
        dropout=0.2,
        rgb=X3DStreamConfig(widths=(24, 48, 96), blocks=(1, 2, 1), stem_stride=2, shift_divisor=8),
        pose=X3DStreamConfig(widths=(24, 48), blocks=(1, 2), stem_stride=1, shift_divisor=4),
    ),
    optim=OptimConfig(
        batch_size=16,
        num_epochs=14,
        lr=0.1,
        schedule="cosine",
        eta_min=1e-4,
        warmup_epochs=2,
        weight_decay=2e-4,
        clip_norm=40.0,
    ),
    val=ValidationConfig(batch_size=24, begin=2, every=4),
    log_every=10,
    snapshot_every=20,
)

# The demo's networks for 30 to 500 videos of your own, on a CPU or a small GPU. From so few clips, a network easily
# learns the clothes and the rooms. So the background is faded, and training changes colours and joints at random. So
# few clips also mean few steps, in which AdamW gets much further than SGD (LOG.md, "The demo and own videos"). Only
# the last part of training is validated. On a small data set, the pose stream soon recognises all clips, and among
# equal scores the first one counts as the best. The best snapshot would then come from an early epoch, although the
# RGB stream goes on learning.
CUSTOM_SMALL = replace(
    DEMO,
    name="custom_small",
    data=CUSTOM.data,
    clip=replace(
        DEMO.clip,
        pose_frames=16,
        rgb_size=80,
        rgb_size_val=96,
        heatmap_size=24,
        heatmap_size_val=28,
        fade_background=0.8,
        color_jitter=0.5,
        erasing=0.25,
        joint_noise=0.5,
        joint_drop=0.05,
    ),
    model=replace(DEMO.model, num_coarse=0, loss_weights=(1.0, 1.0, 0.5, 0.5), label_smoothing=0.1),
    optim=replace(DEMO.optim, kind="adamw", num_epochs=150, lr=3e-3, weight_decay=0.05),
    val=replace(DEMO.val, begin=120, every=10),
    snapshot_every=500,
)

ALL = (
    *(MA52_RUN, MA52_PCAN, MA52_BEST, MA52_POSE_LIMB, NTU60, NTU60_X3D, NTU60_X3D_TUNED),
    *(NTU60_RGB, NTU60_POSE, NTU60_POSE_LIMB, NTU60_RGBPOSE, NTU60_EPAM),
    *(NTU120, NTU120_X3D, NTU120_RGB, NTU120_POSE, NTU120_POSE_LIMB, NTU120_RGBPOSE),
    *(CUSTOM, CUSTOM_SMALL, DEMO),
)
EXPERIMENTS = {experiment.name: experiment for experiment in ALL}
