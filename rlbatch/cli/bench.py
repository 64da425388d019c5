"""`rlbatch bench`: policies compared, paired by seed, with the best fixed size in hindsight."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlbatch.cli import _shared

if TYPE_CHECKING:
    from rlbatch.agents.evaluate.summary import Mean, Summary


@dataclass(frozen=True)
class Command:
    """Compare policies on tasks, with the best fixed batch size in hindsight as the reference.

    A run's ratio is its cost over that of the best fixed size for the same task, seed and clock;
    4 where the target is not reached. A stopped benchmark goes on when the command is repeated. On
    computed clocks the same command writes the same results.jsonl.

    For example: rlbatch bench --task digits-mlp char-lm --policy default goodput --out results
    """

    task: tuple[str, ...]
    """Names of tasks, file.py:function, or simulated:N."""
    policy: tuple[str, ...]
    """What to compare: `default`, policy files, or rules such as fixed:64."""
    out: Path
    """Folder for the results: a new one, or that of the same benchmark to go on with."""
    lr_coupling: tuple[_shared.CouplingName, ...] = ("sqrt",)
    """How the learning rate follows the batch size."""
    profile: tuple[str, ...] = ("cpu",)
    """Clocks that count: device profiles, `samples`, or `wall` for this machine's."""
    start: tuple[float, ...] = (1.0,)
    """First batch sizes relative to the task's."""
    seeds: int = 5
    """Number of seeds."""
    objective: str = "target"
    """`target`, or `budget=COST` in the profile's unit."""
    jobs: int = 1
    """Processes, each with one thread. On the wall clock they disturb each other."""
    references: Path | None = None
    """Folder of the fixed runs, to share them among benchmarks; in the results' folder if unset."""
    json: bool = False
    """Print one JSON object a run, as in results.jsonl, instead of tables."""

    def run(self) -> int:
        """Run the benchmark and print its results."""
        from rlbatch.agents.evaluate.bench import run_bench
        from rlbatch.agents.evaluate.settings import BenchSettings
        from rlbatch.agents.evaluate.summary import to_json
        from rlbatch.files import write_atomically

        _shared.require_possible_folder(self.out)
        if self.references is not None:
            _shared.require_possible_folder(self.references, "--references")
        settings = BenchSettings(
            tasks=self.task,
            policies=self.policy,
            couplings=self.lr_coupling,
            profiles=self.profile,
            starts=self.start,
            seeds=self.seeds,
            objective=self.objective,
        )
        with _shared.progress("runs") as update:
            rows = run_bench(
                settings,
                self.out,
                jobs=self.jobs,
                references=self.references,
                on_progress=update,
            )
        import json

        summary = json.dumps(to_json(rows), indent=2, allow_nan=False)
        write_atomically(self.out / "summary.json", summary + "\n")
        drawn = self._draw(rows)
        if self.json:
            _shared.print_json_lines(rows)
        else:
            print_summaries(rows)
            pictures = "".join(f", {picture.name}" for picture in drawn)
            _shared.say(f"Results: {self.out / 'results.jsonl'}{pictures}")
        return 0

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
    from rlbatch.agents.evaluate.summary import compare, summarize, summarize_by

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


def _short(mean: Mean) -> str:
    return f"{mean.value:.3f}"
