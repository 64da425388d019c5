"""Puts a page together: one HTML file that needs no network."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Mapping, Sequence
from html import escape
from importlib.resources import files
from typing import Any

from rlbatch.inspect.overview import summary_rows
from rlbatch.inspect.reading import RunLog
from rlbatch.inspect.report.benchmarks import Benchmark, benchmark_html
from rlbatch.inspect.report.data import embedded, run_data, run_labels
from rlbatch.inspect.text import printable

# uPlot draws (https://github.com/leeoniya/uPlot): 51 kB, against some hundred of other libraries,
# and quick with 100,000 points.
_SCRIPTS = ("uplot.js", "series.js", "charts.js", "detail.js", "main.js")
_STYLES = ("uplot.css", "page.css")

_CONTROLS = """
<div class="bar controls" role="toolbar" aria-label="Charts">
<div class="set" id="axis"><span>over</span><button value="step">steps</button>
<button value="samples">samples</button><button value="cost">cost</button></div>
<div class="set" id="zoom"><span>zoom</span><button value="in" aria-label="zoom in">+</button>
<button value="out" aria-label="zoom out">&minus;</button>
<button value="left" aria-label="move left">&larr;</button>
<button value="right" aria-label="move right">&rarr;</button><button value="all">all</button></div>
<div class="set" id="theme"><span>colours</span><button value="light">light</button>
<button value="dark">dark</button></div>
<div class="set" id="runs-set"><span>runs</span></div>
</div>
<p class="soft controls">Drag over a chart to zoom, double-click for all; click for the decision
there. <span class="keys">Keys, with the charts in focus: <kbd>&larr;</kbd> <kbd>&rarr;</kbd>
decisions, with <kbd>Shift</kbd> changes only; <kbd>+</kbd> <kbd>&minus;</kbd> <kbd>0</kbd> zoom;
<kbd>x</kbd> axis.</span> Triangles: the size changed; diamonds: the guard or a switch.</p>
<p class="soft num controls" id="hint">&nbsp;</p>
<noscript><p class="notes">The charts need JavaScript; summaries and tables of benchmarks do
not.</p></noscript>
"""

_RUNS = """
<div id="charts" class="charts" tabindex="0" role="group" aria-label="Charts of the runs; arrow keys
 select decisions"></div>
<section class="why" id="why" aria-label="The selected decision"></section>
<div id="live" class="hidden" aria-live="polite"></div>
<h2>Decisions</h2>
<div class="bar controls" style="position:static"><label>show <select id="filter">
<option value="marked">changes and events</option><option value="all">all</option></select></label>
<button id="earlier">earlier</button><button id="later">later</button>
<span class="soft" id="pages"></span></div>
<div class="scroll" id="rows"></div>
"""


def build_page(
    logs: Sequence[RunLog],
    benchmarks: Sequence[Benchmark] = (),
    title: str | None = None,
    on_run: Callable[[int, int], None] | None = None,
) -> str:
    """Return the page of some runs and benchmarks.

    A content security policy lets nothing run but the scripts that the page was made with, and lets
    nothing be loaded from anywhere.

    Args:
        logs: Runs, drawn over each other.
        benchmarks: Results, as tables.
        title: Of the page; None: the runs' names.
        on_run: Called with the runs whose decisions are explained, which takes most of the time,
            and the number of all.
    """
    runs: list[dict[str, Any]] = []
    for log in logs:
        if on_run is not None:
            on_run(len(runs), len(logs))
        runs.append(run_data(log))
    names = [printable(log.name, 60) for log in logs] + [b.name for b in benchmarks]
    shown = printable(title, 200) if title else ", ".join(names[:4]) + (" ..." if names[4:] else "")
    scripts = [_asset(name) for name in _SCRIPTS]
    allowed = " ".join(f"'sha256-{_digest(script)}'" for script in scripts)
    policy = (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    styles = "".join(f"<style>{_asset(name)}</style>\n" for name in _STYLES)
    return "".join(
        [
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n',
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n',
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n',
            f"<title>{escape(shown)} - rlbatch</title>\n{styles}</head>\n<body>\n",
            f"<h1>{escape(shown)}</h1>\n",
            _notes(logs, runs),
            _facts(logs[0]) if len(logs) == 1 else "",
            _CONTROLS + _RUNS if logs else "",
            _facts_table(logs) if len(logs) > 1 else "",
            "".join(benchmark_html(benchmark) for benchmark in benchmarks),
            _licence(),
            f'<script type="application/json" id="runs">{embedded(runs)}',
            "</script>\n",
            *(f"<script>{script}</script>\n" for script in scripts if logs),
            "</body>\n</html>\n",
        ]
    )


def _facts(log: RunLog) -> str:
    """Return the summary of a run, which shows without a script, too."""
    pairs = "".join(
        f"<div><dt>{escape(label)}</dt><dd>{escape(value)}</dd></div>"
        for label, value in _facts_of(log).items()
    )
    return f'<dl class="facts">{pairs}</dl>'


def _facts_table(logs: Sequence[RunLog]) -> str:
    """Return the summaries of several runs beside each other."""
    found = [_facts_of(log) for log in logs]
    labels = list(dict.fromkeys(label for facts in found for label in facts))
    heads = "".join(f'<th scope="col">{escape(printable(log.name, 60))}</th>' for log in logs)
    rows = "".join(_fact_row(label, [facts.get(label, "") for facts in found]) for label in labels)
    return (
        '<h2>Runs</h2><div class="scroll" tabindex="0"><table class="facts">'
        f"<tr><td></td>{heads}</tr>{rows}</table></div>"
    )


def _facts_of(log: RunLog) -> dict[str, str]:
    rows = {k: v for k, v in summary_rows(log).items() if k.strip() and k != "held back"}
    return {**dict(run_labels(log)), **rows}


def _fact_row(label: str, values: Sequence[str]) -> str:
    cells = "".join(f"<td>{escape(value)}</td>" for value in values)
    return f'<tr><th scope="row">{escape(label)}</th>{cells}</tr>'


def _notes(logs: Sequence[RunLog], runs: Sequence[Mapping[str, Any]]) -> str:
    """Return what was wrong with the logs, and what is left out of them."""
    found = [
        f"<p>{escape(printable(log.name, 60))}: {escape(printable(note))}</p>"
        for log, run in zip(logs, runs, strict=True)
        for note in (*log.problems, run["thinned"])
        if note
    ]
    return f'<div class="notes">{"".join(found)}</div>' if found else ""


def _licence() -> str:
    return (
        "<details><summary>Charts by uPlot (MIT); the page by rlbatch, from its episode logs"
        f"</summary><pre>{escape(_asset('uplot-LICENSE.txt'))}</pre></details>\n"
    )


def _asset(name: str) -> str:
    return (files("rlbatch") / "inspect" / "report" / "assets" / name).read_text(encoding="utf-8")


def _digest(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
