"""`python -m trainer config`: prints every setting of an experiment with its value, default, type and meaning."""

import json
from collections.abc import Iterator
from dataclasses import MISSING, dataclass, fields, is_dataclass
from typing import Any, get_args, get_type_hints

from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from kernels.console import lost_output
from kernels.limits import ranges
from kernels.meanings import as_text, default_of, meanings
from pipelines.skeleton import Skeleton
from trainer.config import Experiment
from trainer.experiments import EXPERIMENTS
from trainer.settings import Choice, describe_type, experiment_named, experiment_of
from trainer.stored import to_settings

DESCRIPTION = """Print the settings of an experiment:
  python -m trainer config --exp ntu60_x3d
  python -m trainer config --exp ntu60_x3d --set optim.lr=0.004 --diff
  python -m trainer config --exp ntu60_x3d --json > mine.json"""
WIDEST = 110  # maximum width in columns; longer lines are hard to read
LONGEST = 160  # maximum number of characters of a value; longer values are cut


@dataclass(frozen=True, kw_only=True, slots=True)
class ConfigOptions(Choice):
    """Options of `config`: the experiment, and what is printed about it. --ranks and --device have no effect here."""

    diff: bool = False
    """Print only settings that differ from the shipped experiment or, if you change nothing, from the defaults."""
    json: bool = False
    """Print the experiment as JSON, which --config reads."""


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting. `kind` describes its type in words. `default` is MISSING if the setting has no default."""

    name: str
    value: Any
    default: Any
    kind: str
    meaning: str


def config(options: ConfigOptions) -> int:
    """Print all settings, only the settings that differ, or the experiment as JSON."""
    experiment = experiment_of(options)
    if options.json:
        print(json.dumps(to_settings(experiment), indent=1))
        # exit code 2 says that output was lost, so that a program does not mistake a part of the JSON for the whole
        return 2 if lost_output() else 0
    console = Console(highlight=False)
    console.width = min(console.width, WIDEST)
    settings = list(settings_of(experiment))
    if options.diff:
        description, base = base_of(options, experiment, settings)
        settings = [setting for setting in settings if setting.value != base.get(setting.name, MISSING)]
        console.print(
            Text(
                f"settings of {experiment.name} that differ from {description}:"
                if settings
                else f"no setting differs from {description}"
            )
        )
        for setting in settings:
            other = base.get(setting.name, MISSING)
            show(setting, console, "" if other is MISSING else f" instead of {shortened(other)}")
    else:
        for setting in settings:
            show(setting, console)
    return 0


def show(setting: Setting, console: Console, note: str = "") -> None:
    """Print a setting with its value, a `note` on the value, its meaning, type and default."""
    console.print(Text.assemble((setting.name, "bold"), f"={shortened(setting.value)}{note}"))
    default = "no default" if setting.default is MISSING else f"default {shortened(setting.default)}"
    console.print(Padding(Text(f"{setting.meaning} ({setting.kind}; {default})"), (0, 0, 0, 4)))


def settings_of(part: Any, prefix: str = "", defaults: Any = None) -> Iterator[Setting]:
    """The settings of an experiment or of one of its parts, whose names start with `prefix`.

    defaults: an object of the same type whose values are the defaults, or None if the type of `part` defines the
    defaults.
    """
    hints, limits, texts = get_type_hints(type(part)), ranges(type(part)), meanings(type(part))
    for field in fields(part):
        name, value = prefix + field.name, getattr(part, field.name)
        default = default_of(type(part), field.name) if defaults is None else getattr(defaults, field.name)
        if is_dataclass(value) and not isinstance(value, Skeleton):
            # a field that can have several types also gets a line with the type that the experiment has chosen
            if sum(map(is_dataclass, get_args(hints[field.name]))) > 1:
                name_of_type = type(value).__name__
                yield Setting(name, name_of_type, MISSING, "chosen by the experiment, not by --set", texts[field.name])
            yield from settings_of(value, f"{name}.", default if type(default) is type(value) else None)
        else:
            kind = describe_type(hints[field.name])
            if limit := limits.get(field.name):
                kind += f" from {as_text(limit.low)} to {as_text(limit.high)}"
            yield Setting(name, value, default, kind, texts[field.name])


def base_of(options: ConfigOptions, experiment: Experiment, settings: list[Setting]) -> tuple[str, dict[str, Any]]:
    """The settings with which --diff compares `experiment`: a description in words, and the value of each setting.

    These are the settings of the shipped experiment, or of a user's own experiment as its file defines it. If
    `experiment` has exactly these settings, --diff compares it with the defaults instead.
    """
    shipped, named = EXPERIMENTS.get(experiment.name), experiment_named(options)
    for description, base in (("the experiment as it ships", shipped), (f"{options.exp or options.config}", named)):
        if base is not None and base != experiment:
            return description, {setting.name: setting.value for setting in settings_of(base)}
    return "the defaults", {setting.name: setting.default for setting in settings}


def shortened(value: Any) -> str:
    """The value as text, cut after LONGEST characters."""
    text = as_text(value)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}... ({len(value)} entries)"
