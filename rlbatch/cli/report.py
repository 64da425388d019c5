"""`rlbatch report`: runs and benchmarks as one page, or as figures."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from rlbatch.cli import _shared

if TYPE_CHECKING:
    from rlbatch.inspect.reading import RunLog
    from rlbatch.inspect.report.benchmarks import Benchmark

_MANY = 12  # runs over each other: more than that nobody can tell apart


@dataclass(frozen=True)
class Command:
    """Make one page of runs that opens in a browser without a network.

    Losses, batch sizes, learning rates, noise scales and costs over steps, samples or cost; every
    decision with its reason. Several runs are drawn over each other. A folder of `rlbatch bench` or
    `rlbatch demo` gives the tables of its results, and its logged runs of the first seed.

    For example: rlbatch report runs/first runs/second -o report.html
    """

    folders: Annotated[
        tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(help_behavior_hint="(required)")
    ]
    """Folders of logs, of such folders, or of benchmarks."""
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = Path("report.html")
    """The page. An earlier page of this name is replaced; no other file is."""
    title: str | None = None
    """Of the page; the runs' names if unset."""
    figures: Path | None = None
    """Also draw the runs as PNG and SVG files into this folder."""

    def run(self) -> int:
        """Write the page."""
        from rlbatch.files import write_atomically
        from rlbatch.inspect.report.page import build_page

        self._check()
        logs, benchmarks = self._read()
        title = self.title
        if title is None and len(benchmarks) == len(self.folders):
            title = ", ".join(benchmark.name for benchmark in benchmarks)
        with _shared.progress("Explaining decisions: runs") as update:
            page = build_page(logs, benchmarks, title, update)
        self.out.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self.out, page)
        print(f"{self.out}: {len(page.encode()) / 1000:,.0f} kB, {_counted(logs, benchmarks)}")
        if self.figures is not None and logs:
            from rlbatch.inspect.report.figures import draw_figures

            drawn = draw_figures(logs, self.figures)
            print(f"{self.figures}: {', '.join(path.name for path in drawn)}")
        return 0

    def _check(self) -> None:
        from rlbatch.errors import ConfigurationError

        if not self.folders:
            raise ConfigurationError("Name at least one folder that a run or a benchmark wrote.")
        for folder in self.folders:
            if not folder.exists():
                raise ConfigurationError(
                    f"There is no {folder}. Name the folder that a run or a benchmark wrote."
                )
        _shared.require_possible_folder(self.out.absolute().parent, "-o")
        if self.out.is_dir() or (self.out.exists() and not _is_report(self.out)):
            raise ConfigurationError(
                f"{self.out} is no page of rlbatch and is not replaced. Name another file with -o."
            )
        if self.figures is not None:
            _shared.require_possible_folder(self.figures, "--figures")

    def _read(self) -> tuple[list[RunLog], list[Benchmark]]:
        from rlbatch.errors import ConfigurationError
        from rlbatch.inspect.reading import read_logs
        from rlbatch.inspect.report.benchmarks import is_benchmark, read_benchmark

        benches = [folder for folder in self.folders if is_benchmark(folder)]
        runs = [folder for folder in self.folders if folder not in benches]
        logs = read_logs(runs)
        if len(logs) > _MANY:
            raise ConfigurationError(
                f"{len(logs)} runs over each other cannot be told apart: name {_MANY} at most."
            )
        logs += self._runs_of(benches, _MANY - len(logs))
        return logs, list(map(read_benchmark, benches))

    def _runs_of(self, benches: list[Path], room: int) -> list[RunLog]:
        """Return the logged runs of benchmarks that there is room for, and say which are not."""
        from rlbatch.inspect.reading import read_logs
        from rlbatch.inspect.report.benchmarks import named_by_difference, run_folders

        found: list[RunLog] = []
        for bench in benches:
            runs, count = run_folders(bench)
            drawn = runs if len(found) + len(runs) <= room else []
            if len(drawn) < count:
                which = "those of the first seed are" if drawn else "none of them is"
                _shared.note(
                    f"rlbatch: {bench} has {count} logged runs, and {which} drawn. Name up to "
                    f"{_MANY} folders of {bench / 'runs'} for others."
                )
            found += named_by_difference(read_logs(drawn))
        return found


def _is_report(path: Path) -> bool:
    """Whether a file is a page that this command wrote."""
    with path.open("rb") as file:
        head = file.read(4_000)
    return head.startswith(b"<!DOCTYPE html>") and b"- rlbatch</title>" in head


def _counted(logs: list[RunLog], benchmarks: list[Benchmark]) -> str:
    decisions = sum(len(log.records) for log in logs)
    parts = [f"{len(logs)} run{'s' * (len(logs) != 1)} with {decisions:,} lines"] if logs else []
    parts += [f"{len(benchmarks)} benchmark{'s' * (len(benchmarks) != 1)}"] if benchmarks else []
    return ", ".join(parts)
