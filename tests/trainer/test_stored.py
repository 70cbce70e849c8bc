"""Settings are stored as JSON and read back, including settings that another version of Duet has stored."""

import json
from dataclasses import asdict

import pytest

from kernels.program import UserError
from trainer.experiments import EXPERIMENTS
from trainer.settings import override
from trainer.stored import changes_told, from_json, from_settings, to_settings

CHANGES = ("seed=3", "data.split=none", "optim.milestones=(1,2)", "optim.ema=0.5", "fused=norm_act", "compile=false")


def as_json(experiment) -> dict:
    return json.loads(json.dumps(to_settings(experiment)))


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_comes_back_from_json(name):
    changed = override(EXPERIMENTS[name], *CHANGES)
    assert from_json(json.dumps(to_settings(changed)), "x.json", pytest.fail) == changed
    old = json.loads(json.dumps(asdict(changed)))  # older versions did not store the type of the network
    assert from_settings(old, "x.json", pytest.fail) == changed


def test_missing_settings_have_their_defaults_and_unknown_ones_are_named():
    settings = as_json(override(EXPERIMENTS["demo"], "optim.lr=0.5"))
    for part, name in (("data", "balance"), ("data", "max_bad"), ("optim", "ema"), ("clip", "crop"), ("val", "every")):
        del settings[part][name]
    settings["optim"]["new"] = settings["newer"] = 1
    said = []
    read = from_settings(settings, "x.json", said.append)
    assert read == override(EXPERIMENTS["demo"], "optim.lr=0.5", "val.every=1")
    assert said == [
        "x.json has settings that this version does not know, which have no effect: newer, optim.new",
    ]


@pytest.mark.parametrize(
    ("path", "value", "sentence"),
    [
        (("optim", "lr"), "fast", "optim.lr=fast is not a number"),
        (("optim", "lr"), -1, "optim.lr=-1 is not between 0 and 1e+38"),
        (("optim", "lr"), None, "optim.lr=none is not a number"),
        (("optim", "ema"), 1, "optim.ema=1 is not between 0 and 0.9999999;"),
        (("optim", "num_epochs"), 2_000_000, "optim.num_epochs=2000000 is not between 1 and 1000000;"),
        (("name",), None, "name=none is not a text"),
        (("optim",), 3, "optim=3 is not "),
        (("model", "type"), "Transformer", "model.type=Transformer is not one of EpamConfig, X3DPairConfig, "),
        (("clip", "skeleton"), "nothing", "clip.skeleton=nothing: there is no such skeleton"),
    ],
)
def test_values_are_checked(path, value, sentence):
    settings = as_json(EXPERIMENTS["demo"])
    part = settings
    for name in path[:-1]:
        part = part[name]
    part[path[-1]] = value
    with pytest.raises(UserError) as raised:
        from_settings(settings, "x.json", pytest.fail)
    assert "the settings in x.json cannot be used: " in str(raised.value)
    assert sentence in str(raised.value)


@pytest.mark.parametrize("text", ["", "x", "[" * 100_000, "[]", "3", "{}"])
def test_text_that_is_no_experiment_is_one_sentence(text):
    with pytest.raises(UserError, match=r"^the settings in x\.json "):
        from_json(text, "x.json", pytest.fail)


def test_changes_are_told_and_what_they_mean():
    before = EXPERIMENTS["demo"]
    after = override(before, "optim.lr=0.5", "data.split=b", "clip.sigma=0.7", "clip.skeleton.limbs=((0,1),)")
    assert list(changes_told(before, before, "x.pth")) == []
    told = list(changes_told(before, after, "x.pth"))
    assert told[-1] == "optim.lr was 0.1 in x.pth and is now 0.5"
    starts = ("data.split was xsub", "clip.skeleton", "clip.sigma was")
    for sentence, start in zip(told[:3], starts, strict=True):
        assert sentence.startswith(start)
        assert sentence.endswith("the results cannot be compared with those of that run")
