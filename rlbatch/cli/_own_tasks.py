"""`rlbatch train --task`: what is asked for, what is shown, and the table at the end."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rlbatch.cli import _shared

if TYPE_CHECKING:
    from rlbatch.agents.own_tasks.outcome import Display, Outcome
    from rlbatch.agents.own_tasks.plan import Plan


def prepare(plan: Plan | None, out: Path, resume: bool, tasks: Sequence[str]) -> Plan:
    """Return the plan, new or that of the folder, and keep it there.

    Args:
        plan: What is asked for now; None with `resume`.
        out: The folder.
        resume: Go on with the training in it.
        tasks: Those that were named, with whole paths.

    Raises:
        ConfigurationError: The folder holds something else, or nothing to resume; or a task cannot
            be trained for a step.
    """
    from rlbatch.agents.own_tasks.fixed_costs import cached_task
    from rlbatch.agents.own_tasks.plan import PLAN_FILE, load_plan, save_plan
    from rlbatch.envs.task_check import check_task
    from rlbatch.errors import ConfigurationError

    if plan is None or resume:
        return load_plan(out, tasks)
    if (out / PLAN_FILE).is_file():
        raise ConfigurationError(
            f"{out} already holds a training. Go on with it by adding --resume, or name a new "
            "folder with --out; nothing is overwritten."
        )
    _shared.require_new_folder(out)
    for name in plan.tasks:
        check_task(cached_task(name))
    out.mkdir(parents=True, exist_ok=True)
    save_plan(plan, out)
    return plan


def run(plan: Plan, out: Path, minutes: float, jobs: int | None, cluster: str | None) -> Outcome:
    """Train, and show the progress.

    Raises:
        KeyboardInterrupt: It was stopped; what is kept so far, if anything, has been named.
    """
    from rlbatch.agents.own_tasks.training import train_on_tasks

    try:
        with _display() as display:
            return train_on_tasks(
                plan, out, minutes=minutes, jobs=jobs, display=display, cluster=cluster
            )
    except KeyboardInterrupt:
        if (out / "policy.safetensors").is_file():
            _shared.note(
                f"{out / 'policy.safetensors'} is what is best so far; {out / 'policy.md'} says "
                "what."
            )
        _shared.note("--resume goes on.")
        raise


@contextmanager
def write_no_bytecode() -> Generator[None]:
    """Leave no `__pycache__` beside the files of tasks, here and in processes started here."""
    before, variable = sys.dont_write_bytecode, os.environ.get("PYTHONDONTWRITEBYTECODE")
    sys.dont_write_bytecode = True
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    try:
        yield
    finally:
        sys.dont_write_bytecode = before
        if variable is None:
            del os.environ["PYTHONDONTWRITEBYTECODE"]
        else:
            os.environ["PYTHONDONTWRITEBYTECODE"] = variable


@contextmanager
def _display() -> Generator[Display]:
    """Show a stage, its share and the time left: a bar on a terminal, elsewhere a line at times."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    console = Console(stderr=True)
    if not console.is_terminal:
        yield _Lines()
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[left]}"),
    )
    with Progress(*columns, console=console) as bar:
        shown = bar.add_task("starting", total=1.0, left="")

        def show(what: str, done: float, total: float, left: float) -> None:
            share = done / total if total else 0.0
            bar.update(shown, description=what, completed=share, left=left_text(left))

        yield show


class _Lines:
    """A line when a stage begins, and every few seconds."""

    def __init__(self) -> None:
        self._what, self._last = "", 0.0

    def __call__(self, what: str, done: float, total: float, left: float) -> None:
        now = time.monotonic()
        if what == self._what and now - self._last < _shared.LINE_EVERY:
            return
        self._what, self._last = what, now
        share = done / total if total else 0.0
        _shared.note(f"{what}: {share:.0%}, {left_text(left)}")


def left_text(seconds: float) -> str:
    """Return how much time is left, in words where it is over."""
    if seconds < 1.0:
        return "the time is up, doing what cannot be left out"
    return f"{minutes_text(seconds)} left"


def minutes_text(seconds: float) -> str:
    """Return a time as minutes and seconds."""
    whole = round(seconds)
    return f"{whole // 60}:{whole % 60:02d}"


def print_outcome(plan: Plan, outcome: Outcome) -> None:
    """Print the table of the evaluation, and what is kept."""
    heads = [*(["task"] if len(plan.tasks) > 1 else []), "policy"]
    columns = [*heads, *(f"start {start:g}" for start in plan.starts), "all [95%]", "reached"]
    rows: list[list[str]] = []
    for score in outcome.scores:
        task = [score.task or "all"] if len(plan.tasks) > 1 else []
        name = f"{score.policy} (kept)" if score.kept else score.policy
        values = [f"{value:.3f}" for value in score.by_start]
        rows.append([*task, name, *values, str(score.all), f"{score.reached:.0%}"])
    seeds = "one seed" if outcome.seeds == 1 else f"{outcome.seeds} seeds"
    _shared.print_table(
        f"On {seeds} that nothing was learned from or chosen by",
        columns,
        rows,
        text=heads,
        caption="cost over that of the best fixed size of each seed in hindsight, geometric mean; "
        "4 where the target was not reached",
    )
    _shared.say(f"Kept: {outcome.kept.name}. {outcome.policy}")
    if outcome.better_rule is not None:
        _shared.say(
            f"On the validation seeds the rule {outcome.better_rule} was better still; it needs no "
            f"file: --policy {outcome.better_rule}."
        )
