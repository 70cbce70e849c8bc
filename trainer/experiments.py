"""Every named run. A variant is `replace(...)` with a comment that says why. Source: reference models.md."""

from models import X3DPairConfig, X3DStreamConfig
from pipelines.config import ClipConfig, DataConfig
from pipelines.demo_classes import COARSE_MAP, COARSE_NAMES, FINE_NAMES, DemoConfig
from pipelines.skeleton import COCO_17
from trainer.config import Experiment, OptimConfig, ValidationConfig

# Eight groups of NTU-60's classes, by meaning (models.md D3, semantic8).
SEMANTIC8 = (
    *(0, 0, 0, 0, 2, 2, 2, 3, 3, 4, 2, 2, 2, 1, 1, 1, 1, 1, 1, 1, 1, 4, 4, 3, 2, 3, 3, 2, 2, 2),
    *(4, 2, 2, 4, 4, 4, 0, 4, 4, 4, 5, 5, 5, 5, 5, 5, 5, 5, 5, 6, 6, 6, 7, 6, 7, 7, 6, 7, 7, 7),
)

# The same code as the large runs on data made from nothing; minutes on two CPU cores.
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
        rgb_frames=8,
        pose_frames=24,
        rgb_size=96,
        rgb_size_val=112,
        heatmap_size=24,
        heatmap_size_val=28,
        box_pixels=112,
    ),
    model=X3DPairConfig(
        num_classes=len(FINE_NAMES),
        num_coarse=len(COARSE_NAMES),
        loss_weights=(1.0, 1.5, 0.6, 1.2),
        rgb=X3DStreamConfig(widths=(16, 32, 64), blocks=(1, 1, 2), stem_stride=2, shift_divisor=8),
        pose=X3DStreamConfig(widths=(16, 32), blocks=(1, 2), stem_stride=1, shift_divisor=4),
    ),
    optim=OptimConfig(
        batch_size=16,
        num_epochs=12,
        lr=0.05,
        schedule="cosine",
        eta_min=1e-4,
        warmup_epochs=2,
        weight_decay=2e-4,
        clip_norm=40.0,
    ),
    val=ValidationConfig(batch_size=24, every=2),
    log_every=10,
    snapshot_every=20,
)

# The guide's experiment 3 (models.md C6).
NTU60_X3D = Experiment(
    name="ntu60_x3d",
    data=DataConfig(
        annotations="data/skeleton/ntu60_xsub.pkl",
        videos="data/nturgbd_videos",
        split="xsub",
        num_classes=60,
        coarse_map=SEMANTIC8,
    ),
    clip=ClipConfig(skeleton=COCO_17, rgb_frames=16, pose_frames=48, sigma=0.6),
    model=X3DPairConfig(num_classes=60, num_coarse=8, loss_weights=(1.0, 1.5, 0.6, 1.2)),
    optim=OptimConfig(
        batch_size=32,
        num_epochs=80,
        lr=0.012,
        schedule="cosine",
        eta_min=1e-6,
        warmup_epochs=5,
        weight_decay=2e-4,
        clip_norm=40.0,
    ),
    val=ValidationConfig(batch_size=32, begin=5, every=2, patience=15, min_delta=5e-4),
)

EXPERIMENTS = {experiment.name: experiment for experiment in (DEMO, NTU60_X3D)}
