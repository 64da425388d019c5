"""`rlbatch demo`: does the controller pay off? Measured here and now, in a few minutes."""

from __future__ import annotations

import math
import os
import shlex
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rlbatch.cli import _shared

if TYPE_CHECKING:
    from rlbatch.agents.evaluate.demo import Demo, Start

DEFAULT_TASK = "digits-mlp-sgd"


@dataclass(frozen=True)
class Command:
    """Train a small task from a batch size that is too small, right and too large, and compare.

    From each start four runs: staying there, the published rule `goodput`, the controller, and the
    best fixed size, which is only known afterwards. Losses are those of real training; seconds are
    counted by a device profile, so that they do not depend on what else this machine does. Then one
    decision is explained, and the next commands are named.

    For example: rlbatch demo --seeds 3
    """

    task: str = DEFAULT_TASK
    """What is trained: a name (`rlbatch tasks`), or file.py:function. The shipped policy
    was trained on the default task, among others; not, for example, on digits-cnn."""
    profile: str = "cpu"
    """Whose seconds count: a device profile, or `wall` for this machine's."""
    start: tuple[float, ...] = (0.125, 1.0, 8.0)
    """First batch sizes relative to the task's."""
    seeds: int = 2
    """Number of paired seeds."""
    out: Path | None = None
    """Folder for logs, results and the picture; a new one named rlbatch-demo if unset."""
    policy: str = "default"
    """What controls: `default`, a policy file, or a rule."""
    lr_coupling: _shared.CouplingName = "sqrt"
    """How the learning rate follows the batch size."""
    jobs: int | None = None
    """Processes, each with one thread. If unset it is one for the default task, whose runs are over
    before another process has begun, and on the wall clock; two for other tasks."""
    json: bool = False
    """Print what was measured as JSON."""

    def run(self) -> int:
        """Measure, print and draw."""
        from rlbatch.agents.evaluate.demo import run_demo

        self._check()
        out = _new_folder() if self.out is None else self.out
        _shared.require_possible_folder(out)
        with _shared.progress("Training: runs finished") as update:

            def told(done: int, total: int) -> None:
                if not said:  # all has been checked, and nothing trained yet
                    said.append(self._announced())
                    _shared.note(said[0])
                update(done, total)

            said: list[str] = []
            demo = run_demo(
                out,
                task=self.task,
                policy=self.policy,
                profile=self.profile,
                starts=self.start,
                coupling=self.lr_coupling,
                seeds=self.seeds,
                jobs=self._jobs(),
                on_progress=told,
            )
        picture = _draw(demo, out)
        if self.json:
            _shared.print_json({**asdict(demo), "out": str(out)})
            return 0
        _print(demo)
        if picture is not None:
            _shared.say(f"Picture of the batch sizes over time: {picture}")
        _explain(demo.starts[0])
        _next(demo, out)
        return 0

    def _announced(self) -> str:
        """Return what is about to be done, and how long that takes where it is known."""
        what = (
            f"Training {self.task} from {len(self.start)} batch sizes, under the rule goodput and "
            f"under the controller, with {_seeds(self.seeds)}; fixed batch sizes first"
        )
        return f"{what}. A quarter of a minute on an idle machine." if self._short else f"{what}."

    @property
    def _short(self) -> bool:
        return self.task == DEFAULT_TASK

    def _jobs(self) -> int:
        if self.jobs is None:
            alone = self._short or self.profile == "wall"
            return 1 if alone else max(min(2, os.cpu_count() or 1, self.seeds), 1)
        return min(self.jobs, max(self.seeds, 1)) if self.jobs > 0 else self.jobs

    def _check(self) -> None:
        from rlbatch.agents.evaluate.settings import SIMULATED
        from rlbatch.agents.search.searcher_names import parse_searcher
        from rlbatch.errors import ConfigurationError

        if self.task.startswith(SIMULATED):
            raise ConfigurationError(
                f"The demonstration trains a real task, not {self.task!r}. "
                "`rlbatch tasks` lists some."
            )
        if parse_searcher(self.policy) is not None:
            raise ConfigurationError(
                f"{self.policy!r} makes several runs and has no decisions to show. "
                "Compare it with `rlbatch bench`."
            )


def _new_folder() -> Path:
    number = 1
    while (path := Path("rlbatch-demo" if number == 1 else f"rlbatch-demo-{number}")).exists():
        number += 1
    return path


def _draw(demo: Demo, out: Path) -> Path | None:
    from rlbatch.agents.evaluate.demo_picture import draw_demo
    from rlbatch.errors import MissingExtraError

    try:
        return draw_demo(demo, out)
    except MissingExtraError as error:
        _shared.note(f"rlbatch: No picture: {error}")
        return None


def _print(demo: Demo) -> None:
    from rlbatch.agents.evaluate.demo import verdicts
    from rlbatch.envs.objectives import UNREACHED_RATIO

    _shared.print_table(
        f"Time until {demo.task} reaches its target loss, {_mean(demo.seeds)} "
        f"(clock: {demo.profile})",
        [
            "the run starts at",
            "staying there",
            "goodput rule",
            f"controller ({demo.policy})",
            "best fixed size (which)",
            "sizes the controller used, first seed",
        ],
        [
            [
                f"{start.batch_size} ({start.name})",
                str(start.staying),
                str(start.rule),
                str(start.controller),
                f"{start.best} ({' or '.join(map(str, start.best_sizes))})",
                _sizes(start.sizes),
            ]
            for start in demo.starts
        ],
        text=["the run starts at", "sizes the controller used, first seed"],
        caption=f"{_seconds(demo.profile)}; less is better. >: in some seed given up at "
        f"{UNREACHED_RATIO:g} times the best fixed size's cost, short of the target.",
    )
    print("The best fixed size is known only afterwards, when all have been tried.")
    if demo.policy == "default":
        print(_seen(demo.task))
    for text in verdicts(demo):
        _shared.say(text)


def _seconds(profile: str) -> str:
    if profile == "wall":
        return "Seconds of this machine"
    if profile == "samples" or ":" in profile:
        return f"In the unit of {profile}"
    return f"Seconds by the model of a device, {profile} (of this machine: --profile wall)"


def _seen(task: str) -> str:
    """Say whether the shipped policy was trained on a task."""
    from rlbatch.agents.recipes import SMALL_TASKS

    if task in SMALL_TASKS:
        return (
            f"The shipped policy was trained on {task}, among others. It never saw digits-cnn, for "
            "example: --task digits-cnn. docs/results.md has more."
        )
    return "docs/results.md lists the tasks that the shipped policy was trained on, and others."


def _mean(count: int) -> str:
    return _seeds(count) if count == 1 else f"mean of {_seeds(count)}"


def _seeds(count: int) -> str:
    return "one seed" if count == 1 else f"{count} seeds"


def _sizes(sizes: tuple[int, ...], shown: int = 8) -> str:
    """Return sizes in order, those in the middle left out where they are many."""
    if len(sizes) <= shown:
        return ", ".join(map(str, sizes))
    return f"{', '.join(map(str, sizes[: shown - 2]))} ... {sizes[-1]}"


def _explain(start: Start) -> None:
    """Print in words the first change of the batch size that the gradient noise was known for.

    Where there is none, the first change; where the size never changed, the first decision.
    """
    from rlbatch.cli.inspect import print_step
    from rlbatch.inspect.reading import read_log
    from rlbatch.inspect.series import points

    log = read_log(Path(start.log))
    decided = [point for point in points(log) if point.record.event != "end"]
    if not decided:
        return
    changes = [point for point in decided if point.changed]
    measured = [point for point in changes if not math.isnan(point.noise.value)]
    step = [*measured, *changes, *decided][0].record.step
    print(f"\nOne decision of the run that started at {start.batch_size}, explained:")
    print_step(log, step)
    print("The same from its log:")
    _shared.say(f"    rlbatch inspect {shlex.quote(start.log)} --step {step}")


def _next(demo: Demo, out: Path) -> None:
    log, task = shlex.quote(demo.starts[0].log), shlex.quote(demo.task)
    profile, policy = shlex.quote(demo.profile), shlex.quote(demo.policy)
    print("\nNext:")
    _shared.say("  Train a controller on your own task (docs/tasks.md shows the file):")
    _shared.say("    rlbatch train --task my_task.py:make --out my-controller")
    _shared.say("  Put it on a run, here one of this task (your own loop: five lines, README.md):")
    _shared.say(
        f"    rlbatch run --task {task} --profile {profile} --policy {policy} --start 0.125 "
        "--out my-run"
    )
    _shared.say("  Inspect a run, every decision with its reason:")
    _shared.say(f"    rlbatch inspect {log}")
    _shared.say("  See its runs on a page, over each other:")
    _shared.say(f"    rlbatch report {shlex.quote(str(out))} -o rlbatch-demo.html")
