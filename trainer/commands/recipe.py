"""`python -m trainer recipe NAME`: trains in stages and fuses all scores.

Each stage is a separate run, and all runs are in one folder.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from rich.console import Console
from rich.table import Table
from rich.text import Text

from kernels.json_files import read_json
from kernels.names import printable
from kernels.program import UserError
from trainer.commands.fuse import member_table, sentences
from trainer.commands.fuse import show as show_fusion
from trainer.commands.tables import new_table, plain, print_table
from trainer.recipes.follow import follow
from trainer.recipes.place import Place
from trainer.recipes.shipped import RECIPES
from trainer.recipes.stages import Evaluate, Fuse, Merge, Recipe, Train, changed_recipe
from trainer.report.page.make import PAGE, PageTable
from trainer.report.page.reading import try_to_write
from trainer.report.past_run import read_run
from trainer.runtime.ranks import device_of, started_by_launcher
from trainer.scores.files import FUSION, SCORES, read_scores
from trainer.scores.reported import Result, all_metrics, paper_tables
from trainer.snapshots.lock import locked
from trainer.snapshots.work_dir import refuse_links_in, writable


@dataclass(frozen=True, kw_only=True, slots=True)
class RecipeOptions:
    """Train in stages: python -m trainer recipe ntu60_staged

    Trains each stream, merges RGB and pose, fine-tunes, evaluates and fuses. The same command continues after any
    interruption.
    """

    name: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="NAME")] = ""
    """Name of the recipe: ntu60_staged, ntu120_staged, ma52_staged, custom_staged or demo_staged."""
    work_dir: Path | None = None
    """Folder of all runs. Default: work_dirs/NAME."""
    set: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Change a setting of all runs, as in --set optim.num_epochs=20, or of one run, as in --set rgb:optim.lr=0.1."""
    use: Annotated[tyro.conf.UseAppendAction[tuple[str, ...]], tyro.conf.arg(metavar="STAGE=PATH")] = ()
    """Published weights, a snapshot or a run's folder in place of a stage, as in --use rgb=rgb_only.pth."""
    ranks: int | None = None
    """Processes of each run. Default: as for training."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """The device of each run."""
    dry_run: bool = False
    """Only print the stages."""


def recipe(options: RecipeOptions, console: Console | None = None) -> int:
    """Run all stages that are not done yet, and print the results. Returns the exit code of the last stage that ran."""
    console = console or Console()
    if started_by_launcher():
        raise UserError("a recipe starts the processes of its runs itself: start it without torchrun, with --ranks")
    chosen = changed_recipe(recipe_named(options.name), options.set)
    place = Place(options.work_dir or Path("work_dirs") / chosen.name, chosen, stand_ins_of(options, chosen))
    if options.dry_run:
        print_table(stage_table(place), console)
        return 0
    more = ["--ranks", str(options.ranks)] if options.ranks is not None else []
    more += ["--device", options.device] if options.device != "auto" else []
    refuse_links_in(place.folder)
    with writable(place.folder):
        place.folder.mkdir(parents=True, exist_ok=True)
        with locked(place.folder):
            place.begin()
            code = follow(place, more, lambda text: console.print(text, markup=False, highlight=False, soft_wrap=True))
    if code is None:
        summary(place, console)
        make_page(place, device_of(options.device))
    return code or 0


def recipe_named(name: str) -> Recipe:
    """The recipe with this name. Raises UserError, which suggests a similar name, if there is none."""
    if name not in RECIPES:
        similar = get_close_matches(name, RECIPES, 1)
        hint = f"did you mean {similar[0]}?" if similar else f"the recipes are {', '.join(RECIPES)}"
        raise UserError(f"there is no recipe {name!r}; {hint}")
    return RECIPES[name]


def stand_ins_of(options: RecipeOptions, chosen: Recipe) -> dict[str, Path]:
    """The files and runs that --use names, by stage. Raises UserError."""
    names = [stage.name for stage in chosen.stages if isinstance(stage, Train | Merge)]
    stand_ins = {}
    for text in options.use:
        name, equals, path = text.partition("=")
        if not equals or name not in names:
            raise UserError(f"--use {text}: write STAGE=PATH, where STAGE is one of {', '.join(names)}")
        if not Path(path).exists():
            raise UserError(f"--use {text}: there is nothing at {path}; name a file of weights or a run's folder")
        stand_ins[name] = Path(path)
    return stand_ins


def stage_table(place: Place) -> Table:
    """A table that says what each stage does, and whether the stage is done."""
    table = new_table("stage", "what it does", "state", title=place.recipe.name)
    for stage in place.recipe.stages:
        match stage:
            case Train():
                start = f", starting from {' or '.join(stage.start)}" if stage.start else ""
                what = f"trains {stage.experiment.name} for {stage.experiment.optim.num_epochs} epochs{start}"
            case Merge():
                what = f"merges {' or '.join(stage.rgb)} and {' or '.join(stage.pose)}"
            case Evaluate():
                what = f"scores the validation clips, with --clips {stage.clips}"
            case Fuse():
                weights = "weights fitted on half of the clips" if stage.fit else "equal weights"
                what = f"fuses the scores of {', '.join(stage.members)} with {weights}"
        stand_in = place.stand_ins.get(stage.name)
        state = f"{stand_in} is used" if stand_in else "done" if place.is_done(stage) else ""
        table.add_row(*map(plain, (stage.name, what, state)))
    return table


def summary(place: Place, console: Console) -> None:
    """Print the best validation of each run, the results as papers report them, and the fusions."""
    for table in (run_table(place), *paper_tables(list(results(place)))):
        print_table(table, console)
    for name, report in fusions(place).items():
        console.print(f"{name}:", highlight=False)
        show_fusion(report, console)


def make_page(place: Place, device: str) -> None:
    """Make a page that shows all stages, and all runs beside each other. If that fails, one line says so."""
    scores = {stage.of: place.of(stage.name) / SCORES for stage in place.recipe.stages if isinstance(stage, Evaluate)}
    runs = {place.of(name): scores.get(name) for name in place.recipe.trained if name not in place.stand_ins}
    tables = [page_table(each) for each in (stage_table(place), run_table(place), *paper_tables(list(results(place))))]
    for name, report in fusions(place).items():
        members = member_table(report) if "fused" in report else new_table()
        tables.append(page_table(members, name, sentences(report)))
    for page in try_to_write(place.folder / PAGE, runs, device, print, tables=tables):
        print(f"all stages as a page for a browser: {printable(str(page))}")


def page_table(table: Table, title: str = "", notes: Sequence[str] = ()) -> PageTable:
    """Convert a table of the console to a table of the page. Without `title`, it keeps its own title."""
    columns = [[text_of(cell) for cell in column.cells] for column in table.columns]
    head, rows = [text_of(column.header) for column in table.columns], [list(row) for row in zip(*columns, strict=True)]
    return PageTable(title=title or str(table.title), head=head, rows=rows, notes=list(notes))


def text_of(cell: object) -> str:
    return cell.plain if isinstance(cell, Text) else Text.from_markup(str(cell)).plain


def fusions(place: Place) -> dict[str, dict[str, Any]]:
    """What each fusion of the recipe wrote into its fusion.json, by the name of the stage."""
    stages = [stage for stage in place.recipe.stages if isinstance(stage, Fuse)]
    return {stage.name: read_json(place.of(stage.name) / FUSION) for stage in stages}


def run_table(place: Place) -> Table:
    """A table with the best validation of each run."""
    table = new_table("run", "experiment", "epochs", "best", "at epoch", "metric", title=place.recipe.name)
    for name, stage in place.recipe.trained.items():
        if name in place.stand_ins:
            table.add_row(*map(plain, (name, f"{place.stand_ins[name]} was used", "", "", "", "")))
            continue
        run = read_run(place.of(name))
        best = run.best()
        score, epoch = (f"{best[run.metric]:.4f}", str(best["epoch"])) if best else ("", "")
        table.add_row(*map(plain, (name, stage.experiment.name, f"{run.epochs():.1f}", score, epoch, run.metric)))
    return table


def results(place: Place) -> Iterator[Result]:
    """The metrics of each evaluation and of each fusion. A fusion's name includes its number of clips."""
    for stage in place.recipe.stages:
        if isinstance(stage, Evaluate | Fuse):
            stored = read_scores(place.of(stage.name) / SCORES)
            name = stage.of if isinstance(stage, Evaluate) else f"{stage.name}, {len(stored.names)} of the clips"
            if stored.experiment is not None:
                yield Result(name, stored.experiment, all_metrics(stored.scores))
