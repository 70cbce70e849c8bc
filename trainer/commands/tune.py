"""`python -m trainer tune`: finds the fastest execution settings of an experiment on this machine, for later runs."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from matplotlib.figure import Figure
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from kernels.program import UserError
from trainer.commands.tables import new_table, print_table
from trainer.report.curves import BOTH, GREY, POSE, RGB, write_png
from trainer.runtime.tuning import Result, Row, tune
from trainer.runtime.tuning.search import Show
from trainer.settings import Choice, experiment_of, names_set

DESCRIPTION = """Find the fastest way to compute an experiment's training steps on this machine:
  python -m trainer tune --exp ntu60_x3d
  python -m trainer tune --exp demo --minutes 5
 Later runs on the same kind of machine use these settings, and say so.
 --set overrides them, and --no-tuned ignores them."""
COLORS = {"default": BOTH, "chosen": POSE, "no faster": GREY}  # colours of bars by verdict; all other bars are red


@dataclass(frozen=True, kw_only=True, slots=True)
class TuneOptions(Choice):
    """Options of `tune`. The search does not change the settings that --set names."""

    minutes: float = 10.0
    """Time for measuring. Starting and compiling take extra time: minutes for each change that needs compiling again.
    """


def tune_command(options: TuneOptions, console: Console | None = None) -> int:
    """Tune, then print and draw a table of the changes. Returns 0, or the code of the signal that ended tuning."""
    if not 0 < options.minutes < 1e6:
        raise UserError(f"--minutes {options.minutes:g}: the time must be positive, as in --minutes 10")
    experiment = experiment_of(options)
    # torch is imported only here, because help and mistakes in settings do not need it.
    from trainer.runtime.num_ranks import checked_world_size
    from trainer.runtime.ranks import device_of, started_by_launcher

    if started_by_launcher():
        raise UserError(
            "tune measures a single process: start it without torchrun or srun, and with the --ranks of the run"
        )
    device = device_of(options.device)
    num_ranks = checked_world_size(experiment, options.ranks, device)
    console = console or Console()
    with shown(console) as show:
        fixed, minutes = names_set(options), options.minutes
        result = tune(experiment, device=device, minutes=minutes, progress=show, num_ranks=num_ranks, fixed=fixed)
    print_table(table_of(result), console)
    for line in summary(result, options, num_ranks):
        console.print(escape(line), soft_wrap=True, highlight=False)
    return result.exit_code


@contextmanager
def shown(console: Console) -> Iterator[Show]:
    """A context with a progress bar. Without a terminal, each new step of the search is printed as a line."""
    if not console.is_terminal:
        yield lambda text, _: None if ", round " in text else console.print(escape(text), highlight=False)
        return
    columns = TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=1.0)
        yield lambda text, share: progress.update(task, description=escape(text), completed=share)


def table_of(result: Result) -> Table:
    """A table with one row for each change that was tried."""
    table = new_table("change", "clips/s", "speed relative to the fastest so far (quartiles, n)", "memory", "verdict")
    for row in result.rows:
        speed = "" if row.clips_per_s is None else f"{row.clips_per_s:.4g}"
        memory = "" if row.gb is None else f"{row.gb:.2f} GB"
        times = "" if row.ratio is None else "{1:.3f} ({0:.3f} to {2:.3f}, n {n})".format(*row.ratio, n=row.rounds)
        reason = f": {row.reason}" if row.reason else ""
        style = {"chosen": "bold green", "default": "bold"}.get(row.verdict, "" if row.ratio else "yellow")
        table.add_row(escape(name_of(row)), speed, times, memory, escape(f"{row.verdict}{reason}"), style=style)
    return table


def name_of(row: Row) -> str:
    name = row.change or ("the fastest so far" if row.with_loader else "the default")
    return f"{name}, with the loader" if row.with_loader else name


def summary(result: Result, options: TuneOptions, num_ranks: int) -> Iterator[str]:
    """Draw the picture, and yield sentences about the result, its files and how to use it."""
    from trainer.runtime.tuning.choice import in_words

    if num_ranks > 1:
        yield f"only one of {num_ranks} ranks was measured: the times do not include the exchange of gradients"
    changes = in_words(result.default, result.experiment)
    state = "" if result.finished else "interrupted; so far "
    if changes:
        yield f"{state}the fastest is {changes}: {result.gain:.2f} times as fast as the default"
    else:
        yield f"{state}the default remains: no change that was tried is faster by 2 % or more"
    if result.path is None:
        return
    yield f"saved in {result.path}; from now on, runs on this kind of machine use these settings"
    if any(row.clips_per_s for row in result.rows):
        picture = result.path.with_suffix(".png")
        yield f"picture: {write_png(draw(result.rows, experiment_of(options).name), picture)}"


def draw(rows: list[Row], name: str) -> Figure:
    """Draw a bar for each row that was measured: its clips per second. Blue: chosen; grey: not faster."""
    measured = [row for row in rows if row.clips_per_s is not None]
    figure = Figure(figsize=(9, 1.2 + 0.35 * len(measured)), dpi=110, layout="constrained")
    axes = figure.subplots()
    speeds = [row.clips_per_s or 0.0 for row in measured]
    axes.barh(range(len(measured)), speeds, color=[COLORS.get(row.verdict, RGB) for row in measured])
    axes.set_yticks(range(len(measured)), [name_of(row) for row in measured], fontsize=8)
    for position, row in enumerate(measured):
        times = "" if row.ratio is None else f"  {row.ratio[1]:.2f} times"
        axes.text(speeds[position], position, f" {speeds[position]:.4g}{times}", va="center", fontsize=8)
    axes.invert_yaxis()
    axes.margins(x=0.2)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel("clips/s", fontsize=9)
    axes.set_title(f"{name}: clips per second of one rank", fontsize=10, loc="left")
    return figure
