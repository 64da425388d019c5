"""`rlbatch sweep`: the best batch size for a whole run, by trying."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rlbatch.cli import _shared

if TYPE_CHECKING:
    from rlbatch.agents.search.result import Result
    from rlbatch.agents.search.search import Plan, Search
    from rlbatch.agents.search.trials import Outcome, TrialSpec
    from rlbatch.envs.task import Task


@dataclass(frozen=True)
class Command:
    """Find the best batch size of a task by training at several.

    Writes a table, a picture and the recommended size and learning rate, and says what the search
    cost. A stopped search goes on when the command is repeated. Ends with 1 if no size is any good.

    For example: rlbatch sweep --task digits-mlp --out out/sweep
    """

    task: str
    """Name of a task, or file.py:function."""
    out: Path
    """Folder for the results: a new one, or that of the same search to go on with."""
    method: Literal["doubling", "bayesian", "bandit"] = "doubling"
    """Doubling by hand's rule, Bayesian optimisation (Optuna), or a bandit for jobs that recur."""
    objective: str = "target"
    """`target`, `epochs=N`, or `budget=COST` in the profile's unit."""
    efficiency: float | None = None
    """With epochs=N: from 0, quality only (default), to 1, cost only: least loss^(1-e) cost^e."""
    lr_coupling: _shared.CouplingName = "sqrt"
    """How the learning rate follows the batch size."""
    profile: str = "cpu"
    """Clock that counts: a device profile (see `rlbatch profile`), `samples`, or `wall`."""
    memory_limit: str | None = None
    """Bytes that a pass may take, such as 2GB: sizes beyond are not tried."""
    first: int | None = None
    """First size of the doubling, smallest of the others; by default at most 32."""
    largest: int | None = None
    """Largest size; by default the task's."""
    factor: float = 2.0
    """From one size to the next (doubling, bandit)."""
    patience: int = 2
    """Sizes in a row without an improvement that end the doubling."""
    min_improvement: float = 0.01
    """Relative improvement that counts as one (doubling)."""
    tune_lr: bool = False
    """Look for the best learning rate at each size (doubling; bayesian always does)."""
    seeds: int | None = None
    """Runs of each size and rate: 3 by default, 1 for bayesian."""
    stop_factor: float = 2.0
    """A run to a target is given up at this multiple of the best cost so far."""
    max_steps: int = 20_000
    """A run to a target is given up after this many optimizer steps."""
    trials: int = 20
    """Pairs of size and rate to try (bayesian)."""
    objectives: tuple[Literal["cost", "quality"], ...] = ()
    """`cost quality` searches for their front instead of one score (bayesian)."""
    runs: int = 20
    """Recurrences of the job in all (bandit); a later call with more goes on."""
    jobs: int = 1
    """Processes, each with one thread. On the wall clock they disturb each other."""
    cluster: str | None = None
    """Address of a Ray cluster (HOST:PORT, or `auto` on one of its machines) for the runs; --jobs
    above 1 then limits how many run at the same time. Needs rlbatch[ray] on every node."""
    json: bool = False
    """Print the result as JSON instead of tables."""

    def run(self) -> int:
        """Search, and print what came out."""
        import json

        from rlbatch.agents.search.result import conclude
        from rlbatch.agents.search.search import run_search
        from rlbatch.envs.threads import one_thread
        from rlbatch.files import write_atomically

        _shared.require_possible_folder(self.out)
        search = self._search()
        with one_thread(), _shared.search_folder(self.out, search.identity(), self._shares):
            with _shared.progress("trials") as update:
                found = run_search(
                    search,
                    self.out,
                    jobs=self.jobs,
                    cluster=self.cluster,
                    on_trial=_counting(update, search.most_trials),
                )
            result = conclude(search, found)
            text = json.dumps(result.to_json(), indent=2, allow_nan=False)
            write_atomically(self.out / "result.json", text + "\n")
            drawn = self._draw(result)
        if self.json:
            _shared.print_json(result.to_json())
        else:
            print_result(result)
            print(f"Results: {self.out / 'result.json'}{f', {drawn}' if drawn else ''}")
        return 0 if result.recommended is not None else 1

    @property
    def _shares(self) -> bool:
        """Whether several processes may work in the folder: a bandit is made for that."""
        return self.method == "bandit"

    def _search(self) -> Search:
        """Return the search; every name and number is checked here."""
        from rlbatch.agents.search.conditions import Conditions
        from rlbatch.agents.search.goal import parse_goal
        from rlbatch.agents.search.search import Search
        from rlbatch.agents.search.units import parse_bytes
        from rlbatch.envs.task import resolve_task
        from rlbatch.errors import ConfigurationError

        if self.objectives and self.method != "bayesian":
            raise ConfigurationError("--objectives is for --method bayesian.")
        if self.tune_lr and self.method == "bandit":
            raise ConfigurationError("--tune-lr is for --method doubling; bayesian always does.")
        if self.jobs < 1 or self.runs < 1:
            raise ConfigurationError(
                f"jobs and runs must be at least 1, got {self.jobs} and {self.runs}."
            )
        goal = parse_goal(self.objective, self.efficiency)
        limit = None if self.memory_limit is None else parse_bytes(self.memory_limit)
        conditions = Conditions(
            self.task, goal, self.lr_coupling, self.profile, limit, self.max_steps
        )
        task = resolve_task(self.task)
        return Search(conditions, self._plan(task, limit), self.runs)

    def _plan(self, task: Task, memory_limit: int | None) -> Plan:
        from rlbatch.agents.evaluate.run import largest_batch_size
        from rlbatch.agents.search.bandit import Bandit
        from rlbatch.agents.search.bayesian import Bayesian
        from rlbatch.agents.search.doubling import Doubling
        from rlbatch.envs.task import smallest_batch_size

        allowed = largest_batch_size(task)
        largest = allowed if self.largest is None else self.largest
        _require_largest(largest, allowed)
        usual = max(min(32, task.batch_size), smallest_batch_size(task))
        first = min(usual, largest) if self.first is None else self.first
        ladder = Doubling(
            first=first,
            largest=largest,
            factor=self.factor,
            patience=self.patience,
            min_improvement=self.min_improvement,
            seeds=3 if self.seeds is None else self.seeds,
            tune_rate=self.tune_lr,
            stop_factor=self.stop_factor,
        )
        if self.method == "doubling":
            return ladder
        start = min(max(task.batch_size, first), largest)
        if self.method == "bayesian":
            return Bayesian(
                smallest=first,
                largest=largest,
                start=start,
                trials=self.trials,
                seeds=1 if self.seeds is None else self.seeds,
                objectives=self.objectives,
                stop_factor=self.stop_factor,
                memory_limit=memory_limit,
            )
        sizes = tuple(sorted({*ladder.sizes(), start}))
        return Bandit(sizes=sizes, default=start, beta=self.stop_factor)

    def _draw(self, result: Result) -> Path | None:
        from rlbatch.agents.search.figures import draw
        from rlbatch.errors import MissingExtraError

        try:
            return draw(result, self.out / "search.png")
        except MissingExtraError as error:
            _shared.note(f"rlbatch: No figure: {error}")
            return None


def _require_largest(largest: int, allowed: int) -> None:
    from rlbatch.errors import ConfigurationError

    if not 1 <= largest <= allowed:
        raise ConfigurationError(
            f"--largest must lie between 1 and the task's largest size, {allowed}, got {largest}."
        )


def _counting(
    update: Callable[[int, int | None], None], most: int
) -> Callable[[TrialSpec, Outcome], None]:
    """Return what counts trials; the time left is that of the most that there can be."""
    done = 0

    def count(spec: TrialSpec, outcome: Outcome) -> None:
        nonlocal done
        del spec, outcome
        done += 1
        update(done, max(most, done))

    return count


def print_result(result: Result) -> None:
    """Print the table of sizes and rates, the recommendation and what it cost to find."""
    several = len({point.rate for point in result.points}) > 1
    cells: list[list[str]] = []
    for point in result.points:
        marks = [
            "recommended" if point == result.recommended else "",
            "front" if point.key in result.front else "",
            f"{point.stopped} given up" if point.stopped else "",
            "" if point.fits else "does not fit",
        ]
        ended = f"{point.complete}/{point.runs}"
        known = point.complete > 0
        cells.append(
            [
                f"{point.batch_size:,}",
                *([f"{2.0**point.rate:.3g}"] if several else []),
                ended,
                str(point.loss) if known else "",
                str(point.cost) if known else "",
                f"{point.steps:,.0f}" if known else "",
                f"{point.spent:.4g}",
                ", ".join(filter(None, marks)),
            ]
        )
    columns = ["batch size", *(["x rate"] if several else []), "complete", "final loss [95%]",
               "cost [95%]", "steps", "spent", ""]  # fmt: skip
    title = f"{result.task}, {result.objective}, LR coupling {result.lr_coupling}"
    _shared.print_table(title, columns, cells, text=[""])
    print(result.sentence)
    print(
        f"The search: {result.trials} runs ({result.repeated} of them from before), "
        f"cost {result.search_cost:.4g} ({result.profile} clock)"
        f"{_in_runs(result)}, {result.search_seconds:.1f} s of computing."
    )
    if result.objective.startswith("epochs"):
        from rlbatch.agents.search.result import controller_hint

        print(f"The same balance for a controller: {controller_hint(result.efficiency)}")


def _in_runs(result: Result) -> str:
    if result.recommended is None:
        return ""
    return f", as much as {result.search_cost / result.recommended.cost.value:.1f} such runs"
