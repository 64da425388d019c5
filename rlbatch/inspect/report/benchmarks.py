"""The results of a benchmark as tables with intervals."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from typing import Any

from rlbatch.inspect.reading import RunLog
from rlbatch.inspect.text import printable
from rlbatch.log.episode_reader import RUN_FILE

_WIDTH, _HEIGHT = 180, 18  # of an interval's picture, pixels
_RESULTS, _LOGS = "results.jsonl", "runs"
_DIFFERENCES = {"task": "", "policy": "", "lr_coupling": "", "start_batch_size": "from "}
_NAMES = ("policy", "first", "second")  # columns of texts


@dataclass(frozen=True)
class Benchmark:
    """A benchmark's folder.

    Attributes:
        name: What to call it.
        summary: What `rlbatch.agents.evaluate.summary.to_json` gives.
    """

    name: str
    summary: Mapping[str, Any]


def is_benchmark(folder: Path) -> bool:
    """Whether a folder holds results of `rlbatch bench`."""
    return (folder / _RESULTS).is_file()


def read_benchmark(folder: Path) -> Benchmark:
    """Read the results in a folder, complete or not.

    Raises:
        ConfigurationError: A line is damaged.
    """
    from rlbatch.agents.evaluate.rows import read_results
    from rlbatch.agents.evaluate.summary import to_json

    return Benchmark(printable(folder.resolve().name, 80), to_json(read_results(folder)))


def run_folders(folder: Path) -> tuple[list[Path], int]:
    """Return the folders of the runs of a benchmark's first seed, and how many runs it has logged.

    Where it was told to write no logs there are none. What cannot be read is left out.
    """
    seeds: dict[Path, object] = {}
    for path in sorted((folder / _LOGS).glob(f"*/{RUN_FILE}")):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            seeds[path.parent] = json.loads(path.read_bytes()).get("seed")
    first = min((seed for seed in seeds.values() if isinstance(seed, int)), default=None)
    return [path for path, seed in seeds.items() if seed == first], len(seeds)


def named_by_difference(logs: Sequence[RunLog]) -> list[RunLog]:
    """Return runs of one benchmark named by what tells them apart, where that does: policy, size.

    Their folders' names say all that a run is, and are too long for a legend.
    """
    names = {key: {printable(log.run.get(key), 40) for log in logs} for key in _DIFFERENCES}
    apart = [key for key, values in names.items() if len(values) > 1]
    words = [
        " ".join(_DIFFERENCES[key] + printable(log.run.get(key), 40) for key in apart)
        for log in logs
    ]
    if len(set(words)) < len(words) or not apart:
        return list(logs)
    return [replace(log, name=name) for log, name in zip(logs, words, strict=True)]


def benchmark_html(benchmark: Benchmark) -> str:
    """Return the tables of a benchmark: all tasks, each task, and pairs of policies."""
    summary = benchmark.summary
    parts = [f"<h2>Benchmark {escape(benchmark.name)}</h2>"]
    parts.append(_policies(f"All tasks, {summary['runs']:,} runs", summary["policies"]))
    if len(summary["by_task"]) > 1:
        parts += [_policies(str(task), found) for task, found in summary["by_task"].items()]
    if summary["pairs"]:
        parts.append(_pairs(summary["pairs"]))
    return "\n".join(parts)


def _policies(title: str, found: Sequence[Mapping[str, Any]]) -> str:
    span = _span([one["ratio"] for one in found])
    rows = [
        [
            _text(one["policy"]),
            _cell(f"{one['runs']:,}"),
            _cell(_mean(one["ratio"])),
            f"<td>{_interval(one['ratio'], span)}</td>",
            _cell(f"{one['reach_rate']:.1%}"),
            *(_cell(f"{one[name]:.2f}") for name in ("p10", "median", "p90", "worst")),
            *(_cell(f"{one[name]['value']:.3f}") for name in ("to_default", "to_start")),
        ]
        for one in found
    ]
    heads = (
        *("policy", "runs", "ratio [95%]", f"{span[0]:.2g} to {span[1]:.2g}, line at 1", "reached"),
        *("p10", "median", "p90", "worst", "/ default", "/ start"),
    )
    caption = (
        f"{title}. Ratio: cost over that of the best fixed size in hindsight, geometric mean with "
        "its 95% bootstrap interval; / default and / start: cost over staying at that size."
    )
    return _table(caption, heads, rows)


def _pairs(pairs: Sequence[Mapping[str, Any]]) -> str:
    span = _span([pair["ratio"] for pair in pairs])
    rows = [
        [
            _text(pair["first"]),
            _text(pair["second"]),
            _cell(f"{pair['cells']:,}"),
            _cell(_mean(pair["ratio"])),
            f"<td>{_interval(pair['ratio'], span)}</td>",
            _cell(f"{pair['wins']:.0%}"),
            _cell(f"{pair['ties']:.0%}"),
        ]
        for pair in pairs
    ]
    heads = (
        *("first", "second", "runs", "cost of first / second [95%]"),
        *(f"{span[0]:.2g} to {span[1]:.2g}, line at 1", "first wins", "ties"),
    )
    return _table("Pairs of policies on the same cells.", heads, rows)


def _table(caption: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(
        f'<th scope="col"{" class=text" * (text in _NAMES)}>{escape(text)}</th>' for text in heads
    )
    body = "".join(f"<tr>{''.join(row)}</tr>" for row in rows)
    return (
        '<div class="scroll" tabindex="0"><table>'
        f"<caption><span>{escape(printable(caption))}</span></caption>"
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _text(value: object) -> str:
    return f'<th scope="row" class="text">{escape(printable(value, 120))}</th>'


def _cell(text: str) -> str:
    return f"<td>{escape(text)}</td>"


def _mean(mean: Mapping[str, Any]) -> str:
    if mean["low"] is None:
        return f"{mean['value']:.3f}"
    return f"{mean['value']:.3f} [{mean['low']:.3f}, {mean['high']:.3f}]"


def _span(means: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
    """Return the range of the pictures of a table, with 1 in it."""
    values = [
        float(value)
        for mean in means
        for value in (mean["value"], mean["low"], mean["high"])
        if value
    ]
    return min([*values, 0.95]), max([*values, 1.05])


def _interval(mean: Mapping[str, Any], span: tuple[float, float]) -> str:
    """Return a dot with its interval on a logarithmic scale, as SVG."""
    low, high = math.log(span[0]), math.log(span[1])

    def place(value: float) -> float:
        return 6 + (_WIDTH - 12) * (math.log(value) - low) / (high - low)

    middle, one = _HEIGHT / 2, place(1.0)
    ends = [mean["value"] if mean[name] is None else mean[name] for name in ("low", "high")]
    left, right = (place(float(end)) for end in ends)
    return (
        f'<svg class="interval" width="{_WIDTH}" height="{_HEIGHT}" role="img" '
        f'aria-label="{escape(_mean(mean))}">'
        f'<line x1="{one:.1f}" x2="{one:.1f}" y1="0" y2="{_HEIGHT}" stroke="currentColor" '
        'stroke-dasharray="2 3"/>'
        f'<line x1="{left:.1f}" x2="{right:.1f}" y1="{middle}" y2="{middle}" '
        'style="stroke:var(--run0)" stroke-width="3"/>'
        f'<circle cx="{place(mean["value"]):.1f}" cy="{middle}" r="5" style="fill:var(--run0)"/>'
        "</svg>"
    )
