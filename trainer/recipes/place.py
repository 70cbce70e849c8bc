"""The folder of a recipe: which stages are done, and from which results each stage was made."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from kernels.json_files import read_json
from kernels.program import UserError
from kernels.whole_files import write_whole
from trainer.recipes.stages import Evaluate, Fuse, Merge, Recipe, Stage
from trainer.scores.files import FUSION, SCORES
from trainer.snapshots.choice import snapshot_in
from trainer.stored import differences, from_json, shortened, to_settings

RECIPE = "recipe.json"
# the file in each stage's folder that says from which results the stage was made, and when it was done
STAGE = "stage.json"
MERGED = "merged.safetensors"


@dataclass(frozen=True, slots=True)
class Place:
    """The folder of a recipe, and files or runs that stand in for stages (stage name: path)."""

    folder: Path
    recipe: Recipe
    stand_ins: Mapping[str, Path]

    def of(self, name: str) -> Path:
        """The folder of a stage."""
        return self.folder / name

    def settings_of(self, name: str) -> Path:
        """The file with the settings of a stage that trains."""
        return self.folder / f"{name}.json"

    def begin(self) -> None:
        """Write the settings of all runs. Raises UserError if the folder was begun with other settings."""
        for name, stage in self.recipe.trained.items():
            file = self.settings_of(name)
            try:
                stored = from_json(file, file, print) if file.is_file() else stage.experiment
            except UserError:
                raise UserError(
                    f"{file} cannot be read as settings: remove it, and start the same command again"
                ) from None
            if change := next(differences(stored, stage.experiment), None):
                key, was, now = change
                raise UserError(
                    f"the run {name} in {self.folder} was begun with {key}={shortened(was)}, not with "
                    f"{shortened(now)}: give the same settings as before, or choose another --work-dir"
                )
            write_whole(file, json.dumps(to_settings(stage.experiment), indent=1) + "\n")
        whole = {"recipe": self.recipe.name, "use": {name: str(path) for name, path in self.stand_ins.items()}}
        stored = _read(self.folder / RECIPE)
        if stored not in (None, whole):
            raise UserError(
                f"{self.folder / RECIPE} names another recipe or other --use options: give the same ones as before, or "
                "choose another --work-dir"
            )
        write_whole(self.folder / RECIPE, json.dumps(whole, indent=1) + "\n")

    def is_done(self, stage: Stage) -> bool:
        """Whether a stage is done, and its results exist. Raises UserError if its inputs have been replaced since."""
        note = _read(self.of(stage.name) / STAGE)
        if note is None:
            return False
        for name, finished in self._inputs(stage).items():
            if not isinstance(note.get("inputs"), dict) or note["inputs"].get(name) != finished:
                raise UserError(
                    f"{self.of(stage.name)} was made from an earlier {name}: remove {self.of(stage.name)}, and start "
                    "the same command again"
                )
        return "finished" in note and all((self.of(stage.name) / file).is_file() for file in results_of(stage))

    def note(self, stage: Stage, *, done: bool) -> None:
        """Write into the stage's folder which earlier results the stage uses and, with `done`, when it was done."""
        self.of(stage.name).mkdir(parents=True, exist_ok=True)
        note: dict[str, Any] = {"inputs": self._inputs(stage)}
        if done:
            note["finished"] = datetime.now().isoformat()
        write_whole(self.of(stage.name) / STAGE, json.dumps(note, indent=1) + "\n")

    def weights_of(self, names: tuple[str, ...]) -> Path:
        """The weights that a later stage reads: the best snapshot of the stages `names`, or the file of a merge."""
        return max((self._scored_weights(name) for name in names), key=lambda pair: pair[0])[1]

    def _scored_weights(self, name: str) -> tuple[float, Path]:
        """The best score of a stage's validations, and the file of its best snapshot."""
        stage = next(stage for stage in self.recipe.stages if stage.name == name)
        path = self.stand_ins.get(name, self.of(name) / MERGED if isinstance(stage, Merge) else self.of(name))
        if not path.is_dir():
            return float("-inf"), path
        file, state = snapshot_in(path, False, lambda _: None)
        cursor = state.get("cursor")
        return float(cursor["best"]) if isinstance(cursor, dict) and "best" in cursor else float("-inf"), file

    def _inputs(self, stage: Stage) -> dict[str, str]:
        """For each earlier stage whose results this stage uses: when it was done, or the path that stands in for it."""
        return {
            name: str(self.stand_ins.get(name) or (_read(self.of(name) / STAGE) or {}).get("finished"))
            for name in stage.inputs
        }


def results_of(stage: Stage) -> tuple[str, ...]:
    """The files in a stage's folder that later stages and the summary read. A run's snapshots may have been removed."""
    match stage:
        case Merge():
            return (MERGED,)
        case Evaluate():
            return (SCORES,)
        case Fuse():
            return (SCORES, FUSION)
    return ()


def _read(file: Path) -> dict[str, Any] | None:
    """The content of a file that a recipe wrote, or None if there is none, or if it is damaged."""
    try:
        content = read_json(file)
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None
