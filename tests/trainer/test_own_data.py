"""The experiments for own videos take their classes, coarse classes, split and joints from the annotation file."""

import pickle

import pytest
import torch

from models.config import TwoStreamConfig
from models.networks import build_model
from models.weights.loading import initialise_from
from pipelines.annotate.advice import DEFAULT, EPOCHS, training_advice
from pipelines.skeleton import BODY_25, COCO_17
from tests.pipelines.annotated import clip
from tests.trainer.predicting import save_weights
from trainer.experiments import CUSTOM, CUSTOM_SMALL
from trainer.settings import Choice, experiment_of

FILE = {
    "split": {"own_train": ["a", "b"], "own_val": ["c"]},
    "annotations": [clip("a", label=0), clip("b", label=2), clip("c", label=1)],
    "class_names": ["hop", "nod", "run"],
    "coarse_map": [0, 1, 0],
    "skeleton": "coco17",
}


def own(folder, content, *settings, exp="custom_small"):
    (folder / "my.pkl").write_bytes(pickle.dumps(content))
    places = (f"data.annotations={folder}/my.pkl", f"data.cache={folder}/cache")
    return experiment_of(Choice(exp=exp, set=(*places, *settings)))


@pytest.mark.parametrize("exp", ["custom", "custom_small"])
def test_nothing_about_the_classes_is_typed(tmp_path, exp):
    experiment = own(tmp_path, FILE, exp=exp)
    model = experiment.model
    assert isinstance(model, TwoStreamConfig)
    assert (experiment.data.num_classes, experiment.data.coarse_map, experiment.data.split) == (3, (0, 1, 0), "own")
    assert (model.num_classes, model.num_coarse, experiment.clip.skeleton) == (3, 2, COCO_17)
    plain = own(tmp_path, FILE | {"coarse_map": []}, exp=exp).model
    assert isinstance(plain, TwoStreamConfig)
    assert (plain.num_classes, plain.num_coarse) == (3, 0)


def test_without_names_the_labels_are_counted_and_without_a_file_nothing_changes(tmp_path):
    assert own(tmp_path, FILE["annotations"]).data.num_classes == 3
    assert experiment_of(Choice(exp="custom", set=(f"data.annotations={tmp_path}/none.pkl",))).model == CUSTOM.model


def test_what_is_typed_wins(tmp_path):
    assert own(tmp_path, FILE, "data.num_classes=7").data.num_classes == 7
    assert own(tmp_path, FILE, "data.split=none", "data.val_annotations=x.pkl").data.split is None
    assert own(tmp_path, FILE, "clip.skeleton=body25").clip.skeleton == BODY_25


def test_the_only_pair_of_splits_is_used(tmp_path):
    lists = {"xsub_train": ["a", "b"], "xsub_val": ["c"]}
    assert own(tmp_path, FILE | {"split": lists}).data.split == "xsub"
    two = lists | {"xview_train": ["a"], "xview_val": ["b"]}
    assert own(tmp_path, FILE | {"split": two}).data.split == "own"  # the run will report which splits the file has


def test_the_advice_knows_the_experiments(tmp_path):
    assert DEFAULT == (CUSTOM.data.annotations, CUSTOM.data.videos) == (CUSTOM_SMALL.data.annotations, DEFAULT[1])
    assert CUSTOM_SMALL.optim.num_epochs == EPOCHS
    text = training_advice(*map(type(tmp_path), DEFAULT), 70, 17)
    assert text.startswith("train with: python -m trainer --exp custom_small (")
    text = training_advice(tmp_path / "a b.pkl", tmp_path, 70, 25)
    assert (
        f"--set 'data.annotations={tmp_path}/a b.pkl' --set data.videos={tmp_path} --set clip.skeleton=NAME (" in text
    )
    assert "NAME is" in text
    assert "optim" not in text
    assert "--set optim.num_epochs=100 (" in training_advice(tmp_path, tmp_path, 200, 17)
    assert "--set optim.num_epochs=60 (" in training_advice(tmp_path, tmp_path, 2000, 17)


def test_custom_small_starts_from_a_run_of_the_demo(tmp_path):
    demo = build_model(experiment_of(Choice(exp="demo")).model)
    save_weights(demo.state_dict(), tmp_path / "demo.safetensors")
    network = build_model(own(tmp_path, FILE).model)
    said = initialise_from(network, tmp_path / "demo.safetensors")
    heads = {f"cls_head.fc_{stream}{level}" for stream in ("rgb", "pose") for level in ("", "_coarse")}
    assert {sentence.split()[0] for sentence in said} == heads
    state = demo.state_dict()
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, state[name]) == (name.rpartition(".")[0] not in heads), name
