"""The recipes by name.

Each recipe trains the streams alone, merges RGB and pose, fine-tunes the result and fuses all scores. Source:
docs/sources.md, "Staged recipe", "PCAN recipe", "Limb streams" and "Merging streams".
"""

from dataclasses import replace

from models.config import SingleStreamConfig, Stream, X3DPairConfig
from trainer.config import Experiment
from trainer.experiments import (
    CUSTOM,
    DEMO,
    MA52_DATA,
    MA52_PCAN,
    MA52_POSE_LIMB,
    NTU60_POSE,
    NTU60_POSE_LIMB,
    NTU60_RGB,
    NTU60_RGBPOSE,
    NTU120_POSE,
    NTU120_POSE_LIMB,
    NTU120_RGB,
    NTU120_RGBPOSE,
)
from trainer.recipes.stages import Evaluate, Fuse, Merge, Recipe, Train


def staged(
    name: str, rgb: Experiment, pose: Experiment, limb: Experiment | None, both: Experiment, clips: int
) -> Recipe:
    """A recipe with a run for each stream and a run of RGB and pose together.

    limb: a pose stream that sees limbs instead of joints, or None. Its scores are fused, but it is not merged.
    clips: number of samples of each clip in evaluations.
    """
    alone = {"rgb": rgb, "pose": pose} | ({} if limb is None else {"limb": limb})
    streams = (
        stage
        for stream, experiment in alone.items()
        for stage in (Train(name=stream, experiment=experiment), Evaluate(of=stream, clips=clips))
    )
    return Recipe(
        name=name,
        stages=(
            *streams,
            Merge(name="merged", rgb=("rgb",), pose=("pose",)),
            Train(name="finetuned", experiment=both, start=("merged",)),
            Evaluate(of="finetuned", clips=clips),
            Fuse(name="late_fusion", members=tuple(alone), fit=None),
            Fuse(name="fused", members=(*alone, "finetuned"), fit="half"),
        ),
    )


def x3d_stream(pair: Experiment, stream: Stream) -> Experiment:
    """The experiment of a two-stream X3D reduced to one of its streams, and without coarse classes in its losses."""
    assert isinstance(pair.model, X3DPairConfig)
    path = pair.model.rgb if stream == "rgb" else pair.model.pose
    return replace(
        pair,
        name=f"{pair.name}_{stream}",
        model=SingleStreamConfig(stream=stream, path=path, dropout=pair.model.dropout),
        val=replace(pair.val, metric=f"acc/{stream}_top1"),
    )


def of_limbs(pose: Experiment) -> Experiment:
    """The experiment of a pose stream whose heatmaps show limbs instead of joints."""
    return replace(pose, name=f"{pose.name}_limb", clip=replace(pose.clip, joints=False, limbs=True))


def fine_tuned(pair: Experiment, num_epochs: int) -> Experiment:
    """The experiment that trains the two-stream X3D `pair` further after its streams have been trained separately.

    Its learning rate is a tenth of the learning rate of `pair`, without warm-up.
    """
    optim = replace(pair.optim, lr=pair.optim.lr / 10, num_epochs=num_epochs, warmup_epochs=0)
    return replace(pair, name=f"{pair.name}_finetuned", optim=optim)


# PCAN starts from single streams that were trained on MA-52, but the recipe for these streams is not published. The
# values below are those of NTU-60's single streams, with MA-52's data and as many epochs as PCAN.
MA52_RGB, MA52_POSE = (
    replace(
        single,
        name=single.name.replace("ntu60", "ma52"),
        data=MA52_DATA,
        clip=replace(single.clip, skeleton=MA52_PCAN.clip.skeleton),
        optim=replace(single.optim, num_epochs=MA52_PCAN.optim.num_epochs),
        val=replace(single.val, begin=3, every=1),
    )
    for single in (NTU60_RGB, NTU60_POSE)
)

ALL = (
    staged("ntu60_staged", NTU60_RGB, NTU60_POSE, NTU60_POSE_LIMB, NTU60_RGBPOSE, clips=10),
    staged("ntu120_staged", NTU120_RGB, NTU120_POSE, NTU120_POSE_LIMB, NTU120_RGBPOSE, clips=10),
    staged("ma52_staged", MA52_RGB, MA52_POSE, MA52_POSE_LIMB, MA52_PCAN, clips=10),
    # Joints of your own layout may have no limbs, so this recipe has no stream of limbs.
    staged(
        "custom_staged", x3d_stream(CUSTOM, "rgb"), x3d_stream(CUSTOM, "pose"), None, fine_tuned(CUSTOM, 20), clips=10
    ),
    staged(
        "demo_staged",
        x3d_stream(DEMO, "rgb"),
        x3d_stream(DEMO, "pose"),
        of_limbs(x3d_stream(DEMO, "pose")),
        fine_tuned(DEMO, 6),
        clips=1,
    ),
)
RECIPES = {recipe.name: recipe for recipe in ALL}
