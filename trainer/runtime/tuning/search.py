"""The search of `tune`: tries changes of execution settings one by one, and keeps those that make a run faster.

A variant of the step is the training step with one choice of execution settings. Each variant runs in a separate
process (child.py, trial.py). A variant is chosen if its losses agree with those of the default step, and if it is
faster than the fastest variant so far. To compare the speeds of two variants, they are timed in turn.
"""

import statistics
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from time import monotonic
from typing import Any, Literal

from kernels.program import UserError
from pipelines.annotations.table import open_table
from trainer.config import Experiment
from trainer.data import annotation_files, num_packed
from trainer.runtime.signals import Interrupt
from trainer.runtime.tuning.candidates import Change, Machine, allowed, is_compiled, of_the_loader, of_the_step
from trainer.runtime.tuning.child import WORKER, Child, Interrupted, Lost
from trainer.runtime.tuning.choice import Tuned, cores_of_rank, execution_of, file_of, in_words, key_of, read, write
from trainer.settings import override

# A variant of the step (one choice of execution settings) is chosen if its speed, divided by that of the fastest
# variant so far, has a lower quartile of at least GAIN.
GAIN = 1.02
FEWEST, MOST = 3, 40  # smallest and largest number of rounds, in each of which two variants are timed
TURN = 0.5  # in each round a variant is timed for this many seconds, or for one step if the step takes longer
# Largest relative difference between the losses, or the gradient norms, of a variant and of the default step.
LOSS_BOUNDS = {"fp32": 1e-3, "bf16": 0.05, "fp16": 0.05}
NORM_BOUNDS = {"fp32": 0.05, "bf16": 0.3, "fp16": 0.3}
PATIENCE = 1800.0  # seconds in which a variant must be compiled and ready

Verdict = Literal["default", "chosen", "no faster", "wrong", "failed", "hung", "no memory", "not tried"]
Show = Callable[[str, float], None]  # shows a text about the progress, and how much of the time is used up, from 0 to 1


@dataclass(frozen=True, slots=True)
class Row:
    """The result of trying a change. An empty `change` means the default step.

    ratio: lower quartile, median and upper quartile of the speed of the step with the change, divided by the speed of
    the step with which it was compared. clips_per_s: the median speed of one rank. gb: the peak memory in GB.
    reason: why the change got its verdict, or empty.
    """

    change: str
    verdict: Verdict
    reason: str = ""
    with_loader: bool = False
    clips_per_s: float | None = None
    ratio: tuple[float, float, float] | None = None
    rounds: int = 0
    gb: float | None = None


@dataclass(slots=True)
class Result:
    """The results of a search so far.

    experiment: the fastest settings so far. default: what a run does without tuning. gain: the speed of `experiment`
    divided by the speed of `default`. finished: whether all changes were tried. path: the file of the cache.
    """

    experiment: Experiment
    default: Experiment
    rows: list[Row]
    gain: float = 1.0
    finished: bool = False
    exit_code: int = 0  # exit code of the signal that ended the search (trainer/runtime/signals.py)
    path: Path | None = None


def tune(
    experiment: Experiment,
    *,
    device: str,
    minutes: float = 10.0,
    progress: Show = lambda text, share: None,
    num_ranks: int = 1,
    fixed: frozenset[str] = frozenset(),
    changes: Sequence[Change] | None = None,
    worker: Sequence[str] = WORKER,
    patience: float = PATIENCE,
) -> Result:
    """Find the fastest execution settings of an experiment on this machine's CPU or GPU, and write them to the cache.

    device: cpu or cuda. minutes: time for measuring; starting and compiling take extra time. num_ranks: number of ranks
    of the run; the step of one rank is measured without the others. fixed: settings that must not change. changes: the
    changes to try, by default all changes that may help. worker: the program of child.py. patience: seconds in which a
    variant must be compiled and ready.

    A signal ends the search, and the result then contains everything that was measured before the signal. Raises
    UserError if the default step fails, or if the cache cannot be written.
    """
    # `Interrupt` only records the first signal. A KeyboardInterrupt could be lost, because Python ignores exceptions in
    # the functions that it calls around each fork.
    with Interrupt() as interrupt:
        search = Search(experiment, device, 60 * minutes, progress, num_ranks, worker, patience, interrupt)
        try:
            search.run(fixed, changes)
        except Interrupted:
            search.result.exit_code = interrupt.exit_code
        finally:
            search.end()
    return search.result


class Search:
    """A search in progress. `result` contains the results so far."""

    def __init__(
        self,
        experiment: Experiment,
        device: str,
        seconds: float,
        show: Show,
        num_ranks: int,
        worker: Sequence[str],
        patience: float,
        interrupt: Interrupt,
    ) -> None:
        self.result = Result(experiment, experiment, [])
        self._show = lambda text: show(text, min(1.0, self._used / seconds))
        self._device, self._seconds, self._used = device, seconds, 0.0
        self._worker, self._patience, self._num_ranks, self._interrupt = worker, patience, num_ranks, interrupt
        self._clips, self._cores = experiment.optim.batch_size // num_ranks, cores_of_rank(num_ranks)
        self._key = key_of(experiment, device, self._clips, num_ranks == 1, self._cores)
        # the losses of the first incumbent without the loader (False), and of the first with it (True)
        self._losses: dict[bool, dict[str, Any]] = {}
        self._incumbent: Child | None = None  # runs the fastest variant so far
        self._challenger: Child | None = None  # runs the variant that is being tried
        self._tried = self._of = 0
        self._former: Tuned | None = None
        with suppress(UserError):
            self._former = read(self._key)

    def run(self, fixed: frozenset[str], changes: Sequence[Change] | None) -> None:
        """Try all changes. Then compare all chosen changes together with the default."""
        self._start_with_default()
        own = self._losses[False]
        machine = Machine(
            device=self._device,
            cores=self._cores,
            threads=own["threads"],
            interop_threads=own["interop_threads"],
            precision=own["precision"],
            alone=self._num_ranks == 1,
        )
        of_step, of_loader = (of_the_step(machine), of_the_loader(machine)) if changes is None else (changes, ())
        self._of = len(of_step) + len(of_loader)
        self._keep()
        self._try_all(allowed(of_step, fixed), with_loader=False)
        if of_loader and (reason := why_no_loader(self.result.default)):
            self.result.rows.append(Row("reading and decoding", "not tried", reason))
        elif of_loader:
            self.end()
            self._try_all(allowed(of_loader, fixed), with_loader=True)
        self._compare_with_default()
        self.result.finished = True
        self._keep()

    def end(self) -> None:
        """End the processes of the incumbent and the challenger. `_start_incumbent` can start an incumbent again."""
        for child in (self._incumbent, self._challenger):
            if child is not None:
                child.end()
        self._incumbent = self._challenger = None

    def _start_with_default(self) -> None:
        """Start the default step. If it cannot be compiled, start it uncompiled, because a run would do the same."""
        try:
            self._start_incumbent(self.result.default, with_loader=False)
        except Lost as lost:
            if lost.verdict == "no memory":
                problem = f"the default step of {self._clips} clips does not fit into memory ({lost})"
                raise UserError(f"{problem}: add --set optim.accumulate=2, or lower optim.batch_size") from None
            if self._device == "cpu" or not is_compiled(self.result.default):
                raise UserError(f"the default step fails ({lost}): see what python -m trainer doctor says") from None
            self.result.rows.append(Row("compile=true", "failed", str(lost)))
            self.result.experiment = self.result.default = replace(self.result.default, compile=False)
            try:
                self._start_incumbent(self.result.default, with_loader=False)
            except Lost as other:
                raise UserError(
                    f"the step fails, compiled or not ({other}): see what python -m trainer doctor says"
                ) from None

    def _start_incumbent(self, experiment: Experiment, with_loader: bool) -> Child:
        """Return the incumbent, the process with which other variants are compared.

        If there is none, start `experiment`.

        The losses of the first incumbent are kept, and the losses of all other variants are compared with them.
        """
        if self._incumbent is None:
            what = "the default step" if experiment == self.result.default else "the fastest step so far"
            self._show(f"{what} starts, compiles and computes losses")
            child = self._incumbent = self._child(experiment, with_loader)
            losses, ready = child.answer(), child.answer()
            if with_loader not in self._losses:
                self._losses[with_loader] = losses
                start, steps = monotonic(), steps_of_turn(ready["seconds"])
                rate = self._clips / statistics.median(child.ask(steps) for _ in range(FEWEST))
                self._used += monotonic() - start
                self.result.rows.append(Row("", "default", "", with_loader, rate, gb=ready["gb"]))
        return self._incumbent

    def _child(self, experiment: Experiment, with_loader: bool) -> Child:
        of_rank = replace(experiment, optim=replace(experiment.optim, batch_size=self._clips))
        # the number that trainer/runtime/ranks.py sets; 0 means torch's default
        threads = self._cores if self._num_ranks > 1 else 0
        task = {"device": self._device, "with_loader": with_loader, "threads": threads}
        return Child(of_rank, task, self._interrupt, self._patience, self._worker)

    def _try_all(self, changes: Sequence[Change], with_loader: bool) -> None:
        for change in changes:
            best, assignment = self.result.experiment, change(self.result.experiment)
            if assignment is not None and self._used >= self._seconds:
                self.result.rows.append(Row(assignment, "not tried", "the time was used up", with_loader))
            elif assignment is not None:
                experiment = override(best, assignment)
                row = self._try(assignment, experiment, best, with_loader)
                if row.ratio is not None and row.verdict == "chosen":
                    self.result.experiment, self.result.gain = experiment, self.result.gain * row.ratio[1]
            self._tried += 1
            self._keep()

    def _compare_with_default(self) -> None:
        """If several changes were chosen, compare the step with all of them to the default step."""
        chosen = [row for row in self.result.rows if row.verdict == "chosen"]
        if len(chosen) > 1:
            self.end()
            together, default = self.result.experiment, self.result.default
            row = self._try("all chosen changes", together, default, chosen[-1].with_loader)
            if row.ratio is not None:
                self.result.gain = row.ratio[1]
            if row.verdict == "no faster":
                self.result.experiment, self.result.gain = default, 1.0

    def _try(self, name: str, experiment: Experiment, rival: Experiment, with_loader: bool) -> Row:
        """Compare a variant of the step with the variant `rival`, and add the result to the rows."""
        budget = (self._seconds - self._used) / max(1, self._of - self._tried)
        row = Row(name, "no faster", with_loader=with_loader)
        try:
            incumbent = self._start_incumbent(rival, with_loader)
            self._show(f"{name} starts, compiles and computes losses")
            challenger = self._challenger = self._child(experiment, with_loader)
            reason = disagreement(self._losses[with_loader], challenger.answer())
            if reason is not None:
                row = replace(row, verdict="wrong", reason=reason)
            else:
                row = self._race(row, challenger, incumbent, budget)
        except Lost as lost:
            row = replace(row, verdict=lost.verdict, reason=str(lost))
            self.end()  # ends both processes, because either the challenger or the incumbent may have failed
        if row.verdict == "chosen":
            self._incumbent, self._challenger = self._challenger, self._incumbent
        if self._challenger is not None:
            self._challenger.end()
            self._challenger = None
        self.result.rows.append(row)
        return row

    def _race(self, row: Row, challenger: Child, incumbent: Child, budget: float) -> Row:
        """Time both processes in turn for about `budget` seconds, and return the row with the speeds.

        Ends early once it is clear that the challenger does not win. Raises Lost if one of the processes fails.
        """
        ready = challenger.answer()
        steps, end, ratios, own = steps_of_turn(ready["seconds"]), self._used + budget, [], []
        while len(ratios) < FEWEST or (self._used < end and len(ratios) < MOST and not is_lost(ratios)):
            start = monotonic()
            first, second = (challenger, incumbent) if len(ratios) % 2 else (incumbent, challenger)
            seconds = {first: first.ask(steps), second: second.ask(steps)}
            ratios.append(seconds[incumbent] / seconds[challenger])
            own.append(seconds[challenger])
            self._used += monotonic() - start
            self._show(f"{row.change}, round {len(ratios)}: {statistics.median(ratios):.2f} times")
        low, median, high = statistics.quantiles(ratios, n=4)
        return replace(
            row,
            verdict="chosen" if low >= GAIN else "no faster",
            clips_per_s=self._clips / statistics.median(own),
            ratio=(low, median, high),
            rounds=len(ratios),
            gb=ready["gb"],
        )

    def _keep(self) -> None:
        """Write the results to the cache. An unfinished search does not replace the results of a finished one."""
        result, former = self.result, self._former
        if not result.finished and former is not None and former.finished:
            return
        tuned = Tuned(
            key=self._key,
            settings=execution_of(result.experiment),
            told=in_words(result.default, result.experiment),
            gain=result.gain,
            default=f"the plain {'compiled' if self._is_compiled() else 'uncompiled'} step",
            tried=self._tried,
            of=self._of,
            finished=result.finished,
            rows=[asdict(row) for row in result.rows],
        )
        try:
            result.path = write(tuned)
        except OSError as error:
            raise UserError(
                f"{error.filename or file_of(self._key)} cannot be written ({error.strerror}): set the environment "
                "variable XDG_CACHE_HOME to a folder that can be written"
            ) from None

    def _is_compiled(self) -> bool:
        compile = self.result.default.compile
        return self._device == "cuda" if compile is None else compile


def steps_of_turn(seconds: float) -> int:
    """The number of steps for which a variant is timed in a round, if a step takes `seconds`."""
    return max(1, round(TURN / seconds))


def is_lost(ratios: list[float]) -> bool:
    """Whether the results so far show that the variant is not faster by the factor GAIN."""
    return len(ratios) >= 2 * FEWEST and statistics.quantiles(ratios, n=4)[2] < GAIN


def disagreement(expected: dict[str, Any], losses: dict[str, Any]) -> str | None:
    """The first loss or gradient norm of a variant that differs too much from the default step's, in words, or None."""
    for name, what, bounds in (("loss", "loss", LOSS_BOUNDS), ("grad_norm", "gradient norm", NORM_BOUNDS)):
        bound = max(bounds[expected["precision"]], bounds[losses["precision"]])
        for step, (ours, theirs) in enumerate(zip(losses[name], expected[name], strict=True), 1):
            if not abs(ours - theirs) <= bound * abs(theirs):  # true also if a value is NaN
                return f"its {what} in step {step} is {ours:.4g}, not {theirs:.4g}"
    return None


def why_no_loader(experiment: Experiment) -> str | None:
    """Why the loader cannot read batches yet (annotations or packs are missing), or None if it can."""
    missing = [file for file in annotation_files(experiment) if not file.is_file()]
    if missing:
        return f"{missing[0]} does not exist yet"
    if "rgb" not in experiment.streams or experiment.data.source == "video":
        return None
    try:
        tables = [open_table(file, Path(experiment.data.cache)) for file in annotation_files(experiment)]
    except UserError as error:
        return str(error)
    if any(num_packed(experiment, table) < len(table) * (1 - experiment.data.max_bad) for table in tables):
        return "the clips are not packed yet (python -m trainer prepare does that)"
    return None
