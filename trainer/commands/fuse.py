"""`python -m trainer fuse`: adds up the scores of several networks with weights, and matches the scores by clip names.

The user gives the weights, or they are fitted on clips with labels. The report says with an interval how much each
member contributes.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from rich.console import Console
from rich.table import Table
from torch import Tensor

from kernels.names import printable
from kernels.program import UserError
from kernels.whole_files import write_whole
from models.classes import MA52
from trainer.commands.eval import make_folder, write_class_table, write_metrics
from trainer.commands.tables import new_table, plain, print_table
from trainer.metrics import Scores
from trainer.scores.cautions import FITTED_HERE, differ_for_certain, different_views, weights_fitted_here
from trainer.scores.files import COARSE, FUSION, SCORES, StoredScores, write_scores
from trainer.scores.fusion import fit_weights, halves, without
from trainer.scores.members import MemberFile, Members, join_members, read_members
from trainer.scores.outcome import Metric, interval, resampled
from trainer.scores.reported import all_metrics

TITLES: dict[Metric, str] = {"top1": "top-1", "mean1": "mean class accuracy", "f1_mean": "F1 mean"}


@dataclass(frozen=True, kw_only=True, slots=True)
class FuseOptions:
    """Fuse scores of eval: python -m trainer fuse work_dirs/rgb work_dirs/pose --fit half

    Clips are matched by name. RUN means RUN/eval/scores.npz. PATH:rgb, PATH:pose and PATH:sum are single streams;
    without such an ending, a member is the mean of its streams.
    """

    scores: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="SCORES")]
    """Two or more members: a run's folder, a folder of results, or scores.npz."""
    weights: tuple[float, ...] = ()
    """A weight for each member. Default: equal weights."""
    fit: Annotated[tuple[str, ...], tyro.conf.arg(metavar="half|val|same|SCORES")] = ()
    """Fit the weights. half: on half of the clips, reporting the other half. val: on the members' validation scores, in
    eval/ of their runs. same: on the reported clips. SCORES: on these scores, one file for each member."""
    mixed_views: bool = False
    """Accept members that were scored with different --clips, --crops or --flip."""
    metric: Metric | None = None
    """What to maximise and report. Default: f1_mean for MA-52, otherwise top1."""
    out: Path = Path("fused")
    """Folder of the results."""


@dataclass(frozen=True, slots=True)
class Fit:
    """Weights, the positions of the reported clips, and a sentence that says where the weights come from.

    is_here: whether the weights were fitted on the reported clips.
    """

    weights: tuple[float, ...]
    rows: Tensor
    sentence: str
    is_here: bool = False


def fuse(options: FuseOptions) -> int:
    """Fuse the scores, print what each member contributes, and write the results. Raises UserError."""
    if len(options.scores) < 2:
        raise UserError("fuse needs two or more members: write, for example, python -m trainer fuse RUN_A RUN_B")
    if options.weights and options.fit:
        raise UserError("weights are either given or fitted: leave out --weights or --fit")
    files = read_members(options.scores)
    stored, first = [file.stored for file in files], files[0].stored
    refuse_to_replace_members(options.out, stored)
    if not options.mixed_views:
        refuse_different_views(stored)
    metric = options.metric or default_metric(files)
    members = join_members(files)
    if metric == "f1_mean" and members.coarse is None:
        raise UserError("--metric f1_mean needs coarse classes, but these scores have none: use --metric top1")
    fit = fit_of(options, files, members, metric)
    members = members.at(fit.rows)
    make_folder(options.out)
    if note := different_views(stored):
        print(f"note: {note}")
    if warning := weights_fitted_here(stored):
        print(warning)
    report: dict[str, Any] = {"weights": fit.weights, "fit": fit.sentence}
    if first.has_labels:
        report |= contributions(options.scores, members, fit.weights, metric)
    show(report, Console())
    names = [first.names[row] for row in fit.rows.tolist()]
    is_here = fit.is_here or any(each.fitted_here for each in stored)
    write(options.out, report, scores_of(members, fit.weights), names, stored, is_here)
    return 0


def refuse_to_replace_members(out: Path, stored: Sequence[StoredScores]) -> None:
    """Raise UserError if the fused scores would replace those of a member, or hide those of a member's run."""
    for each in stored:
        folders = (
            (each.path.parent, each.path.parent.parent) if each.path.parent.name == "eval" else (each.path.parent,)
        )
        if each.path.name == SCORES and out.resolve() in {folder.resolve() for folder in folders}:
            raise UserError(
                f"--out {out} has the scores of a member, {each.path}, which the fused scores would replace or hide: "
                "name a folder of its own with --out"
            )


def refuse_different_views(stored: Sequence[StoredScores]) -> None:
    """Raise UserError if two files say that their scores are means over different views of a clip."""
    if differ_for_certain(stored):
        raise UserError(
            f"{different_views(stored)}: evaluate all checkpoints with the same --clips, --crops and --flip, or accept "
            "the difference with --mixed-views"
        )


def default_metric(files: Sequence[MemberFile]) -> Metric:
    """The metric by which papers compare networks on the data set of these scores."""
    is_ma52 = any(file.stored.experiment and file.stored.experiment.data.coarse_map == MA52 for file in files)
    return "f1_mean" if is_ma52 else "top1"


def fit_of(options: FuseOptions, files: Sequence[MemberFile], members: Members, metric: Metric) -> Fit:
    """The weights of --weights, fitted weights if --fit asks for them, or equal weights. Raises UserError."""
    first = files[0].stored
    everything = torch.arange(len(first.names))
    if not options.fit:
        return Fit(given_weights(options, len(files)), everything, "given" if options.weights else "equal")
    if not first.has_labels and options.fit in (("half",), ("same",)):
        raise UserError("these clips have no labels on which weights can be fitted: give the weights with --weights")
    if options.fit == ("half",):
        some, others = halves(first.names, members.label)
        sentence = f"fitted on {len(some)} of {len(everything)} clips; the results are those of the other {len(others)}"
        return Fit(fit_weights(members.at(some), metric), others, sentence)
    if options.fit == ("same",):
        return Fit(fit_weights(members, metric), everything, FITTED_HERE, is_here=True)
    elsewhere = scores_to_fit(options, files)
    return Fit(
        fit_weights(join_members(elsewhere), metric),
        everything,
        f"fitted on {len(elsewhere[0].stored.names)} other clips, those of {elsewhere[0].stored.path}",
    )


def scores_to_fit(options: FuseOptions, files: Sequence[MemberFile]) -> list[MemberFile]:
    """The scores in the files that --fit names, for the same streams as those of the members.

    Raises UserError unless there is one file for each member, or if the files contain clips of the results, or if their
    scores come from other networks or other views than those of the members.
    """
    if options.fit == ("val",):
        places = [str(file.stored.path.parent.parent / "eval") for file in files]
    else:
        places = list(options.fit)
    if len(places) != len(files):
        raise UserError(
            f"--fit has {len(places)} values for {len(files)} members: name scores for each member, or use --fit half"
        )
    endings = [f":{file.stream}" if file.stream and options.fit == ("val",) else "" for file in files]
    elsewhere = read_members([place + ending for place, ending in zip(places, endings, strict=True)])
    stored, names = elsewhere[0].stored, set(files[0].stored.names)
    if common := sum(name in names for name in stored.names):
        raise UserError(
            f"{common} clips of {stored.path}, on which weights would be fitted, are also clips of the results: use "
            "--fit half, or --fit same to accept that"
        )
    for file, other in zip(files, elsewhere, strict=True):
        refuse_another_network(file.stored, other.stored)
        if not options.mixed_views:
            refuse_different_views([file.stored, other.stored])
    if not stored.has_labels:
        raise UserError(f"the clips of {stored.path} have no labels to fit weights: name other scores with --fit")
    return elsewhere


def refuse_another_network(member: StoredScores, fitted: StoredScores) -> None:
    """Raise UserError if weights would be fitted on scores of another network than that of the member."""
    origins = [f"{each.checkpoint} of {each.experiment.name}" for each in (member, fitted) if each.experiment]
    if len(set(origins)) == 2:
        raise UserError(
            f"{member.path} has scores of {origins[0]}, but {fitted.path}, on which weights would be fitted, has "
            f"scores of {origins[1]}: evaluate the same snapshot on both splits, and name the runs in the same order"
        )


def given_weights(options: FuseOptions, num_members: int) -> tuple[float, ...]:
    """The weights of --weights, or equal weights, scaled so that their sum is 1."""
    weights = options.weights or (1.0,) * num_members
    if len(weights) != num_members or min(weights) < 0 or not 0 < sum(weights) < float("inf"):
        raise UserError(
            f"--weights {shown(weights)}: give {num_members} numbers, one for each member, that are 0 or more and not "
            "all 0"
        )
    return tuple(weight / sum(weights) for weight in weights)


def shown(weights: Sequence[float]) -> str:
    return " ".join(f"{weight:.4g}" for weight in weights)


def contributions(
    places: Sequence[str], members: Members, weights: tuple[float, ...], metric: Metric
) -> dict[str, Any]:
    """The content of fusion.json: the metric of the fused scores and of each member alone, and the gain of each member.

    The gain of a member is the metric of the fusion minus the metric of a fusion without this member. The 95 %
    intervals come from a bootstrap over the clips.
    """
    count, rows = len(weights), []
    fused = members.outcome(weights)
    value = fused.measure(metric)
    for member, place in enumerate(places):
        alone = members.outcome([float(number == member) for number in range(count)]).measure(metric)
        row: dict[str, Any] = {"member": place, "weight": weights[member], "alone": alone}
        if others := without(weights, member):
            lesser = members.outcome(others)
            draws = resampled([fused, lesser], metric)
            row |= {"gain": value - lesser.measure(metric), "gain_interval": interval(draws[:, 0] - draws[:, 1])}
        rows.append(row)
    limits = interval(resampled([fused], metric)[:, 0])
    return {"metric": metric, "fused": value, "interval": limits, "contributions": rows}


def show(report: dict[str, Any], console: Console) -> None:
    """Print what fusion.json contains."""
    origin, *result = sentences(report)
    console.print(origin, markup=False, highlight=False, soft_wrap=True)
    if "fused" in report:
        print_table(member_table(report), console)
    for sentence in result:
        console.print(sentence, highlight=False)


def sentences(report: dict[str, Any]) -> list[str]:
    """Where the weights of a fusion come from, and its result."""
    origin = f"weights {shown(report['weights'])}: {report['fit']}"
    if "fused" not in report:
        return [origin, "the clips have no labels, so there are no metrics"]
    low, high = report["interval"]
    title = TITLES[report["metric"]]
    return [origin, f"fused {title}: {report['fused']:.4f}, 95 % interval {low:.4f} to {high:.4f}"]


def member_table(report: dict[str, Any]) -> Table:
    """A table of the members of a fusion, with the gain of each."""
    table = new_table("member", "weight", TITLES[report["metric"]], "gain", "95 % interval of the gain")
    for row in report["contributions"]:
        cells = [f"{row['weight']:.4g}", f"{row['alone']:.4f}"]
        if "gain" in row:
            low, high = row["gain_interval"]
            cells += [f"{row['gain']:+.4f}", f"{low:+.4f} to {high:+.4f}"]
        table.add_row(plain(row["member"]), *cells)
    return table


def scores_of(members: Members, weights: tuple[float, ...]) -> Scores:
    """The fused scores, stored as the scores of a single stream that is called `fused`."""
    fine, coarse = members.fused(weights)
    probability = {"fused": fine} | ({} if coarse is None else {f"fused{COARSE}": coarse})
    return Scores(torch.arange(len(fine)), members.label, members.coarse_label, probability)


def write(
    folder: Path,
    report: dict[str, Any],
    scores: Scores,
    names: Sequence[str],
    stored: Sequence[StoredScores],
    fitted_here: bool,
) -> None:
    """Write fusion.json, scores.npz and, if the clips have labels, metrics.json and classes.csv. Raises UserError.

    stored: the scores of the members.
    fitted_here: whether weights were fitted on the clips `names`.
    """
    experiment = next((each.experiment for each in stored if each.experiment), None)
    class_names, coarse_map = (experiment.data.class_names, experiment.data.coarse_map) if experiment else ((), ())
    written = [FUSION, SCORES]
    try:
        write_whole(folder / FUSION, json.dumps(report, indent=1) + "\n")
        views = stored[0].views if different_views(stored) is None else None
        write_scores(folder / SCORES, scores, names, experiment, "", views, fitted_here)
        if stored[0].has_labels:
            written += ["metrics.json", "classes.csv"]
            write_metrics(folder / "metrics.json", all_metrics(scores))
            write_class_table(folder / "classes.csv", scores, class_names, coarse_map)
    except OSError as error:
        raise UserError(
            f"the results cannot be written to {folder} ({error.strerror or error}); name another folder with --out"
        ) from None
    print(f"{printable(str(folder))}: {', '.join(written)}")
    if coarse_map == MA52:
        print(f"for Codabench: python -m trainer submit {printable(str(folder))}")
