"""`rlbatch bench`: policies compared, paired by seed, with the best fixed size in hindsight."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rlbatch.cli import _shared

if TYPE_CHECKING:
    from rlbatch.agents.evaluate.summary import Mean, Summary


Suite = Literal["field", "field:dev", "field:locked", "field:quick"]


@dataclass(frozen=True)
class Command:
    """Compare policies on tasks, with the best fixed batch size in hindsight as the reference.

    A run's ratio is its cost over that of the best fixed size for the same task, seed and clock;
    4 where the target is not reached. A stopped benchmark goes on when the command is repeated. On
    computed clocks the same command writes the same results.jsonl.

    For example: rlbatch bench --task digits-mlp char-lm --policy default goodput --out results
    """

    policy: tuple[str, ...]
    """What to compare: `default`, policy files, rules such as fixed:64, or the searches `sweep`,
    `bayesian` and `bandit`, charged for their trials in one run and in ten recurring ones."""
    out: Path
    """Folder for the results: a new one, or that of the same benchmark to go on with."""
    task: tuple[str, ...] = ()
    """Names of tasks, file.py:function, or simulated:N."""
    suite: Suite | None = None
    """In place of tasks: jobs of ordinary size, with their own clocks, starts and objectives."""
    lr_coupling: tuple[_shared.CouplingName, ...] = ("sqrt",)
    """How the learning rate follows the batch size."""
    profile: tuple[str, ...] = ("cpu",)
    """Clocks that count: device profiles (`NAME:untold` to keep it from the policy what a step
    costs), `samples`, or `wall` for this machine's."""
    start: tuple[float, ...] = (1.0,)
    """First batch sizes relative to the task's."""
    seeds: int | None = None
    """Number of seeds; 5, or the suite's own number, if unset."""
    objective: str = "target"
    """`target`, `budget=COST` in the profile's unit, or `epochs=N`, whose ratio is the cost over
    the least at which any fixed size and length ends with the same loss."""
    jobs: int = 1
    """Processes, each with one thread. On the wall clock they disturb each other."""
    cluster: str | None = None
    """Address of a Ray cluster (HOST:PORT, or `auto` on one of its machines) for the runs; --jobs
    above 1 then limits how many run at the same time. Needs rlbatch[ray] on every node."""
    references: Path | None = None
    """Folder of the fixed runs, to share them among benchmarks; in the results' folder if unset."""
    json: bool = False
    """Print one JSON object a run, as in results.jsonl, instead of tables."""

    def run(self) -> int:
        """Run the benchmark and print its results."""
        from rlbatch.agents.evaluate.epochs_summary import with_epochs
        from rlbatch.files import write_atomically

        _shared.require_possible_folder(self.out)
        if self.references is not None:
            _shared.require_possible_folder(self.references, "--references")
        rows = self._rows()
        import json

        summary = json.dumps(with_epochs(rows), indent=2, allow_nan=False)
        write_atomically(self.out / "summary.json", summary + "\n")
        drawn = self._draw(rows)
        if self.json:
            _shared.print_json_lines(rows)
        else:
            print_summaries(rows)
            pictures = "".join(f", {picture.name}" for picture in drawn)
            _shared.say(f"Results: {self.out / 'results.jsonl'}{pictures}")
        return 0

    def _rows(self) -> list[dict[str, Any]]:
        """Run what is missing and return all results."""
        from rlbatch.errors import ConfigurationError

        if bool(self.task) == (self.suite is not None):
            raise ConfigurationError("Give either tasks with --task or a suite with --suite.")
        run = self._of_tasks() if self.suite is None else self._of_suite(self.suite)
        with _shared.progresses("fixed runs", "runs") as (fixed, update):
            return run(
                self.out,
                jobs=self.jobs,
                cluster=self.cluster,
                references=self.references,
                on_progress=update,
                on_fixed=fixed,
            )

    def _of_tasks(self) -> Callable[..., list[dict[str, Any]]]:
        from rlbatch.agents.evaluate.bench import run_bench
        from rlbatch.agents.evaluate.settings import BenchSettings
        from rlbatch.agents.search.searcher_names import with_recurring

        settings = BenchSettings(
            tasks=self.task,
            policies=with_recurring(self.policy),
            couplings=self.lr_coupling,
            profiles=self.profile,
            starts=self.start,
            seeds=5 if self.seeds is None else self.seeds,
            objective=self.objective,
        )
        self._say_locked(self.task)
        return partial(run_bench, settings)

    def _of_suite(self, suite: str) -> Callable[..., list[dict[str, Any]]]:
        from rlbatch.agents.evaluate.suite import run_suite, suite_parts

        parts = suite_parts(suite, self.policy, self.lr_coupling, self.seeds)
        self._say_locked(parts[-1].settings.tasks)
        return partial(run_suite, parts)

    def _say_locked(self, tasks: Sequence[str]) -> None:
        """Say which locked tasks are run: whoever looks at them writes it down."""
        from rlbatch.agents.evaluate.suite import locked_among

        locked = locked_among(tasks)
        if locked:
            say = _shared.note if self.json else print
            say(
                f"Locked tasks of the field suite: {', '.join(locked)}. "
                "Write in docs/field-suite.md that and why they were run."
            )

    def _draw(self, rows: Sequence[dict[str, Any]]) -> list[Path]:
        from rlbatch.agents.evaluate.curve_store import read_lines
        from rlbatch.agents.evaluate.figures import draw_figures
        from rlbatch.errors import MissingExtraError

        path = self.out / "trajectories.jsonl"
        try:
            return draw_figures(rows, read_lines(path) if path.exists() else [], self.out)
        except MissingExtraError as error:
            _shared.note(f"rlbatch: No figures: {error}")
            return []


def print_summaries(rows: Sequence[dict[str, Any]]) -> None:
    """Print a table over all results, one for each of several tasks, and one of pairs."""
    from rlbatch.agents.evaluate.epochs_summary import epochs_rows
    from rlbatch.agents.evaluate.summary import compare, summarize, summarize_by

    planned = epochs_rows(rows)
    _print_epochs(planned)
    rows = [row for row in rows if row not in planned]
    if not rows:
        return
    by_task = summarize_by(rows, "task")
    if len(by_task) > 1:
        for task, found in by_task.items():
            _print_summary(task, found)
    title = next(iter(by_task)) if len(by_task) == 1 else "All tasks"
    _print_summary(title, summarize(rows))
    pairs = compare(rows)
    if pairs:
        cells = [
            [p.first, p.second, str(p.cells), str(p.ratio), f"{p.wins:.0%}", f"{p.ties:.0%}"]
            for p in pairs
        ]
        columns = ["first", "second", "runs", "cost of first / second", "first wins", "ties"]
        _shared.print_table("Pairs", columns, cells, text=["first", "second"])


def _print_summary(title: str, found: Sequence[Summary]) -> None:
    cells: list[list[str]] = []
    for one in found:
        spread = [f"{value:.2f}" for value in (one.p10, one.median, one.p90, one.worst)]
        reach = f"{one.reach_rate:.1%}"
        means = [str(one.ratio), reach, *spread, _short(one.to_default), _short(one.to_start)]
        cells.append([one.policy, str(one.runs), *means])
    best = found[0]
    for name, mean in (("(default size)", best.fixed_default), ("(start size)", best.fixed_start)):
        cells.append([name, str(best.runs), str(mean), *[""] * 7])
    columns = [
        "policy",
        "runs",
        "ratio [95%]",
        "reached",
        "p10",
        "median",
        "p90",
        "worst",
        "/ default",
        "/ start",
    ]
    caption = (
        "ratio: cost over that of the best fixed size in hindsight, geometric mean; "
        "/ default, / start: cost over staying at that size"
    )
    _shared.print_table(title, columns, cells, text=["policy"], caption=caption)


def _print_epochs(rows: Sequence[dict[str, Any]]) -> None:
    """Print a table for each clock, and one over all."""
    from rlbatch.agents.evaluate.epochs_summary import summarize_epochs

    profiles = list(dict.fromkeys(row["profile"] for row in rows))
    parts = [(name, [row for row in rows if row["profile"] == name]) for name in profiles]
    for title, part in [*parts, ("All clocks", rows)] if len(parts) > 1 else parts:
        cells = [
            [
                *(one.policy, str(one.runs), str(one.ratio), str(one.time), str(one.loss)),
                *(f"{one.worse:.0%}", f"{one.worst_loss:.3f}"),
                *(f"{one.changes:g}", str(one.most_changes), f"{one.beyond:.0%}"),
            ]
            for one in summarize_epochs(part)
        ]
        columns = [
            *("policy", "runs", "time at equal loss [95%]", "time / user's size"),
            *("loss / user's size", "worse", "worst", "changes", "most", "beyond"),
        ]
        caption = (
            "time at equal loss: cost over the least at which a fixed size, at any length with its "
            "own schedule, ends with the same loss; worse: share of runs whose loss is more than "
            "2% above that of the user's size; beyond: share whose loss lies beyond the frontier"
        )
        name = f"Runs of so many epochs, {title}"
        _shared.print_table(name, columns, cells, text=["policy"], caption=caption)


def _short(mean: Mean) -> str:
    return f"{mean.value:.3f}"
