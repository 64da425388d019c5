"""What logs of so many decisions cost, for `measure_scale.py`: seconds of one processor, memory."""

from __future__ import annotations

import json
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rlbatch.log.episode_log import DecisionRecord, EpisodeLog, read_episode

ROOT = Path(__file__).parents[1]
Row = dict[str, float]


def writing_row(decisions: int) -> Row:
    """Write a log, and go on with it."""
    row: Row = {}
    with tempfile.TemporaryDirectory() as folder:
        info, records = example(decisions)
        with EpisodeLog(folder, info, tensorboard=False) as log:
            timed(row, "write s", lambda: write_all(log, records))
        row["MB written"] = (Path(folder) / "decisions.jsonl").stat().st_size / 1e6
        again = {"resume": True, "tensorboard": False}
        timed(row, "resume s", lambda: EpisodeLog(folder, {}, **again).close())
    return row | {"MB of memory": peak_megabytes()}


def write_all(log: EpisodeLog, records: Iterator[DecisionRecord]) -> None:
    for record in records:
        log.write(record)


def log_row(decisions: int) -> Row:
    """Read, report and inspect a log."""
    from rlbatch.inspect.overview import summary_lines
    from rlbatch.inspect.reading import read_log
    from rlbatch.inspect.report.page import build_page
    from rlbatch.inspect.series import points
    from rlbatch.inspect.table import DecisionTable

    row: Row = {}
    with tempfile.TemporaryDirectory() as folder:
        info, records = example(min(decisions, 1_000))
        with EpisodeLog(folder, info, tensorboard=False) as written:
            write_all(written, records)
        grow(Path(folder) / "decisions.jsonl", decisions)
        log = timed(row, "read s", lambda: read_log(folder))
    row["MB to read"] = peak_megabytes()
    page = timed(row, "report s", lambda: build_page([log], [], None))
    row["page MB"] = len(page.encode()) / 1e6

    def inspect() -> int:
        found = points(log)
        table = DecisionTable(120, found, color=False)
        return len(summary_lines(log, 120)) + sum(1 for _ in table.rows(found))

    timed(row, "inspect s", inspect)
    return row | {"MB of memory": peak_megabytes()}


def grow(path: Path, decisions: int) -> None:
    """Repeat the lines of a log, counted on: quicker than to write each by `EpisodeLog`."""
    made = [json.loads(line) for line in path.read_bytes().splitlines()]
    rests = [line.partition(b',"batch_size_before"') for line in path.read_bytes().splitlines()]
    last = made[-1]
    with path.open("ab") as file:
        for number in range(len(made), decisions):
            turn, place = divmod(number, len(made))
            line = made[place]
            step = line["step"] + turn * last["step"]
            head = (
                f'{{"index":{number},"event":"decision","step":{step},"effective_step":{step},'
                f'"epoch":{line["epoch"] + turn * last["epoch"]},'
                f'"samples_seen":{line["samples_seen"] + turn * last["samples_seen"]},'
                f'"cost":{line["cost"] + turn * last["cost"]}'
            )
            file.write(head.encode() + b"".join(rests[place][1:]) + b"\n")


def example(decisions: int) -> tuple[dict[str, Any], Iterator[DecisionRecord]]:
    """Return what a recorded run says of itself, and so many decisions."""
    recorded = read_episode(ROOT / "docs" / "example-log-goodput")
    info = {key: recorded.run[key] for key in ("context", "policy", "task")}
    return info, repeated(recorded.records, decisions)


def repeated(records: Sequence[DecisionRecord], decisions: int) -> Iterator[DecisionRecord]:
    """Yield so many decisions: those of a run again and again, counted on."""
    made = [record for record in records if record.event == "decision"]
    last = made[-1]
    for number in range(decisions):
        turn, place = divmod(number, len(made))
        record, step = made[place], turn * last.step
        then = record.effective_step
        yield replace(
            record,
            index=number,
            step=record.step + step,
            effective_step=None if then is None else then + step,
            samples_seen=record.samples_seen + turn * last.samples_seen,
            cost=record.cost + turn * last.cost,
        )


def timed(row: Row, name: str, function: Callable[[], Any]) -> Any:
    began = time.process_time()
    result = function()
    row[name] = time.process_time() - began
    print(f"{name}: {row[name]:.4g}", file=sys.stderr, flush=True)
    return result


def peak_megabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3  # kilobytes on Linux
