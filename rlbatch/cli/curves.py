"""`rlbatch curves`: learning curves of fixed batch sizes, for recipes with real runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rlbatch.cli import _shared


@dataclass(frozen=True)
class Command:
    """Make the learning curves that `rlbatch train --recipe` needs, with fixed batch sizes.

    Each table is kept when it is done, and a stopped command goes on when it is repeated. For tasks
    of your own `rlbatch train --task` makes what it needs itself.

    For example: rlbatch curves --out curves --task digits-mlp
    """

    out: Path
    """Folder of the tables."""
    task: tuple[str, ...] | None = None
    """Built-in tasks; the small ones of the default recipe if unset."""
    random: int = 2000
    """Random perceptrons."""
    random_long: int = 600
    """Random perceptrons with longer runs."""
    random_transformer: int = 40
    """Random transformers."""
    seeds: int = 8
    """Runs of each size of a built-in task."""
    jobs: int | None = None
    """Processes; one a core if unset."""
    cluster: str | None = None
    """Address of a Ray cluster (HOST:PORT, or `auto` on one of its machines) for the runs; --jobs
    then limits how many it has at the same time. Needs rlbatch[ray] on every node."""

    def run(self) -> int:
        """Make what is missing."""
        from rlbatch.agents.curves import make_curves
        from rlbatch.agents.recipes import SMALL_TASKS
        from rlbatch.envs.threads import one_thread

        _shared.require_possible_folder(self.out)
        with one_thread(), _shared.progress("tables") as update:

            def on_table(line: str, done: int, total: int) -> None:
                update(done, total)
                _shared.note(line)

            make_curves(
                self.out,
                SMALL_TASKS if self.task is None else self.task,
                {
                    "random": self.random,
                    "random-long": self.random_long,
                    "random-transformer": self.random_transformer,
                },
                self.seeds,
                jobs=self.jobs,
                cluster=self.cluster,
                on_table=on_table,
            )
        _shared.say(str(self.out))
        return 0
