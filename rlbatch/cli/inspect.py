"""`rlbatch inspect`: what a run's log holds."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from rlbatch.cli import _shared


@dataclass(frozen=True)
class Command:
    """Show the decisions of a run, from its episode log, finished or not.

    For example: rlbatch inspect runs/first --last 20
    """

    log: Annotated[Path, tyro.conf.Positional]
    """Folder of the log."""
    last: int | None = None
    """Show only this many of the last decisions."""
    json: bool = False
    """Print a summary as JSON."""

    def run(self) -> int:
        """Print the log."""
        from rlbatch.errors import ConfigurationError
        from rlbatch.inspect.summary import summarize
        from rlbatch.log.episode_log import read_episode

        if self.last is not None and self.last < 1:
            raise ConfigurationError(f"--last must be at least 1, got {self.last}.")
        if not self.log.exists():
            raise ConfigurationError(
                f"There is no {self.log}. Name the folder that a run wrote with --out."
            )
        episode = read_episode(self.log)
        if self.json:
            _shared.print_json(summarize(episode))
            return 0
        from rich.console import Console

        from rlbatch.inspect.table import render_decisions, render_summary

        console = Console()
        console = console if console.is_terminal else Console(width=160)
        console.print(render_decisions(episode, limit=self.last))
        console.print(render_summary(episode))
        return 0
