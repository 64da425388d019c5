"""`rlbatch inspect`: what runs' logs hold."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from rlbatch.cli import _shared

if TYPE_CHECKING:
    from rlbatch.inspect.reading import RunLog
    from rlbatch.inspect.series import Point
    from rlbatch.log.decision_record import DecisionRecord


@dataclass(frozen=True)
class Command:
    """Show what the controller did in a run and why; compare several runs.

    Reads every log as far as it goes, finished or not. For pictures: rlbatch report.

    For example: rlbatch inspect runs/first --last 20
    """

    logs: Annotated[
        tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(help_behavior_hint="(required)")
    ]
    """Folders of logs, or folders of such folders."""
    last: int | None = None
    """Show only this many of the last decisions."""
    step: int | None = None
    """Explain in words the decision that was in force at this optimizer step."""
    follow: bool = False
    """Go on showing decisions of a run in progress until it ends."""
    csv: Path | None = None
    """Write all lines as a CSV file instead."""
    parquet: Path | None = None
    """Write all lines as a Parquet file instead."""
    json: bool = False
    """Print a summary as JSON."""

    def run(self) -> int:
        """Print or write the logs."""
        from rlbatch.inspect.reading import read_logs

        self._check()
        if self.follow:
            return self._follow()
        logs = read_logs(self.logs)
        if self.csv is not None or self.parquet is not None:
            self._write(logs)
        elif self.step is not None:
            for log in logs:
                print_step(log, self.step, with_name=len(logs) > 1)
        elif self.json:
            _print_json(logs)
        elif len(logs) == 1:
            self._print_run(logs[0])
        else:
            _print_comparison(logs)
        return 0

    def _check(self) -> None:
        from rlbatch.errors import ConfigurationError

        if not self.logs:
            raise ConfigurationError("Name at least one folder that a run wrote with --out.")
        if self.last is not None and self.last < 1:
            raise ConfigurationError(f"--last must be at least 1, got {self.last}.")
        if self.step is not None and self.step < 0:
            raise ConfigurationError(f"--step must not be negative, got {self.step}.")
        if self.follow and len(self.logs) > 1:
            raise ConfigurationError("--follow takes one folder. Use a terminal for each run.")
        for path in self.logs:
            if not path.exists():
                raise ConfigurationError(
                    f"There is no {path}. Name the folder that a run wrote with --out."
                )
        self._check_output()

    def _check_output(self) -> None:
        from rlbatch.errors import ConfigurationError

        table = self.csv is not None or self.parquet is not None
        ways = {"--step": self.step is not None, "--follow": self.follow, "--json": self.json}
        chosen = [*(name for name, taken in ways.items() if taken), *["--csv/--parquet"] * table]
        if len(chosen) > 1:
            raise ConfigurationError(f"{' and '.join(chosen)} exclude each other. Give one.")
        for option, path in (("--csv", self.csv), ("--parquet", self.parquet)):
            if path is None:
                continue
            if path.exists():
                raise ConfigurationError(f"{path} is already there. Name a new file.")
            _shared.require_possible_folder(path.absolute().parent, option)

    def _write(self, logs: Sequence[RunLog]) -> None:
        from rlbatch.inspect.frames import write_csv, write_parquet

        for path, write in ((self.csv, write_csv), (self.parquet, write_parquet)):
            if path is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
                write(logs, path)
                print(f"Wrote {path}")

    def _print_run(self, log: RunLog) -> None:
        from rlbatch.inspect.overview import summary_lines, title
        from rlbatch.inspect.series import points
        from rlbatch.inspect.table import DecisionTable

        width, found = terminal_width(), points(log)
        shown = found if self.last is None else found[-self.last :]
        table = DecisionTable(width, shown, color=has_color())
        print(title(log))
        print()
        print("\n".join(summary_lines(log, width)))
        print()
        print("\n".join(table.head()))
        for line in table.rows(shown):
            print(line)
        if len(shown) < len(found):
            print(f"{len(found) - len(shown):,} earlier decisions are left out.")

    def _follow(self) -> int:
        from dataclasses import replace

        from rlbatch.inspect.following import follow
        from rlbatch.inspect.overview import summary_lines, title
        from rlbatch.inspect.reading import read_log
        from rlbatch.inspect.series import Point, PointMaker
        from rlbatch.inspect.table import DecisionTable

        log, width = read_log(self.logs[0]), terminal_width()
        print(title(log))
        table, found = DecisionTable(width, color=has_color()), list[Point]()
        maker, done = PointMaker(log.run), 0
        print("\n".join(table.head()))
        for records in follow(log.folder):
            log = replace(log, records=tuple(records))
            if not _goes_on(found, records):
                maker, found = PointMaker(log.run), []
            found += map(maker.add, records[len(found) :])
            if len(found) < done:
                print("(resumed from an earlier checkpoint)")
                done = len(found)
            elif done == 0 and self.last is not None:
                done = max(0, len(found) - self.last)
            for line in table.rows(found[done:]):
                print(line, flush=True)
            done = len(found)
        print()
        print("\n".join(summary_lines(log, width)))
        return 0


def _goes_on(found: Sequence[Point], records: Sequence[DecisionRecord]) -> bool:
    """Whether lines were only added: what has been read anew is made of other objects."""
    seen = len(found)
    return not seen or (len(records) >= seen and records[seen - 1] is found[-1].record)


def terminal_width() -> int:
    """Return the columns to fill: COLUMNS, the terminal's, or 160 where there is none."""
    return max(shutil.get_terminal_size((160, 24)).columns, 40)


def has_color() -> bool:
    """Whether standard output is a terminal that shows colours, and nobody refused them."""
    return sys.stdout.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"


def _print_json(logs: Sequence[RunLog]) -> None:
    from rlbatch.inspect.comparison import compare
    from rlbatch.inspect.summary import summarize

    _shared.print_json(summarize(logs[0]) if len(logs) == 1 else compare(logs).values)


def _print_comparison(logs: Sequence[RunLog]) -> None:
    from rlbatch.inspect.comparison import compare
    from rlbatch.inspect.overview import comparison_lines
    from rlbatch.inspect.text import printable

    print("\n".join(comparison_lines(compare(logs), terminal_width())))
    for log in logs:
        for problem in log.problems:
            print(f"{printable(log.name)}: {printable(problem)}")


def print_step(log: RunLog, step: int, *, with_name: bool = False) -> None:
    """Print in words the decision that was in force at an optimizer step.

    Args:
        log: The run.
        step: Optimizer step.
        with_name: Print the run's title first.
    """
    import textwrap

    from rlbatch.inspect.explain import Explainer, sentences
    from rlbatch.inspect.overview import title
    from rlbatch.inspect.series import points
    from rlbatch.inspect.text import printable

    found, width = points(log), terminal_width()
    place = in_force_at(found, step)
    if with_name:
        print(title(log))
    if place is None:
        print(f"Nothing had been decided by step {step:,}.")
        return
    explainer = Explainer(log)
    told = sentences(log, found, place, explainer.why(found[place]))
    if explainer.note:
        told.append(explainer.note)
    for text in told:
        print("\n".join(textwrap.wrap(printable(text, 2_000), min(width, 100))))


def in_force_at(found: Sequence[Point], step: int) -> int | None:
    """Return the place of the last decision at or before an optimizer step."""
    places = [place for place, point in enumerate(found) if point.record.step <= step]
    decided = [place for place in places if found[place].record.event != "end"]
    return (decided or places or [None])[-1]
