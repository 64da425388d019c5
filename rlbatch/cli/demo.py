"""`rlbatch demo`: does the controller pay off? Measured here and now, in a few minutes."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rlbatch.cli import _shared

if TYPE_CHECKING:
    from rlbatch.agents.evaluate.demo import Demo


@dataclass(frozen=True)
class Command:
    """Train a digits classifier at its default batch size, at every fixed size, and controlled.

    Losses and samples are those of real training; seconds are counted by a device profile, so that
    they do not depend on what else this machine does.

    For example: rlbatch demo --seeds 3
    """

    seeds: int = 5
    """Number of paired seeds."""
    out: Path | None = None
    """Folder for logs, results and the picture; a new one named rlbatch-demo if unset."""
    policy: str = "default"
    """What controls: `default`, a policy file, or a rule."""
    lr_coupling: _shared.CouplingName = "sqrt"
    """How the learning rate follows the batch size."""
    jobs: int = min(2, os.cpu_count() or 1)
    """Processes, each with one thread."""
    json: bool = False
    """Print what was measured as JSON."""

    def run(self) -> int:
        """Measure, print and draw."""
        from rlbatch.agents.evaluate.demo import run_demo

        out = _new_folder() if self.out is None else self.out
        _shared.require_possible_folder(out)
        with _shared.progress("Training: seeds finished") as update:
            demo = run_demo(
                out,
                policy=self.policy,
                coupling=self.lr_coupling,
                seeds=self.seeds,
                jobs=min(self.jobs, max(self.seeds, 1)) if self.jobs > 0 else self.jobs,
                on_progress=update,
            )
        picture = _draw(demo, out)
        if self.json:
            _shared.print_json({**asdict(demo), "out": str(out)})
            return 0
        _print(demo)
        _shared.say(f"Episode logs: {out / 'runs'} (rlbatch inspect shows one)")
        if picture is not None:
            _shared.say(f"Picture: {picture}")
        return 0


def _new_folder() -> Path:
    number = 1
    while (path := Path("rlbatch-demo" if number == 1 else f"rlbatch-demo-{number}")).exists():
        number += 1
    return path


def _draw(demo: Demo, out: Path) -> Path | None:
    from rlbatch.agents.evaluate.demo import draw_demo
    from rlbatch.errors import MissingExtraError

    try:
        return draw_demo(demo, out)
    except MissingExtraError as error:
        _shared.note(f"rlbatch: No picture: {error}")
        return None


def _print(demo: Demo) -> None:
    from rlbatch.agents.evaluate.demo import verdict

    rows = demo.rows
    _shared.print_table(
        "Fixed batch sizes",
        ["batch size", "seconds to target", "reached"],
        [
            [
                str(size.batch_size) + (" (default)" if size is demo.default else ""),
                _number(size.seconds, "-"),
                f"{size.reached}/{len(rows)}",
            ]
            for size in demo.sizes
        ],
        caption="-: not reached in some seed at 4 times the cost of the best size",
    )
    _shared.print_table(
        f"Cost to target: {rows[0]['task']}, {rows[0]['lr_coupling']} coupling, {len(rows)} seeds",
        ["", "seconds", "samples", "reached", "/ default [95%]", "/ best fixed [95%]"],
        _comparison(demo),
        text=[""],
        caption="seconds: of the cpu profile; ratios: geometric means over seeds",
    )
    _shared.say(verdict(demo))


def _comparison(demo: Demo) -> list[list[str]]:
    summary, default = demo.summary, demo.default
    count, to_best = len(demo.rows), demo.summary.fixed_default

    def mean(field: str) -> float:
        return sum(row[field] for row in demo.rows) / count

    def share(field: str) -> str:
        return f"{sum(row[field] for row in demo.rows)}/{count}"

    return [
        [
            f"default size ({default.batch_size})",
            _number(default.seconds, "-"),
            _number(default.samples, "-"),
            f"{default.reached}/{count}",
            "1.000",
            str(to_best),
        ],
        [
            "best fixed size in hindsight",
            _number(mean("reference_cost"), "-"),
            _number(demo.best_samples, "-"),
            share("reference_reached"),
            f"{1 / to_best.value:.3f}",
            "1.000",
        ],
        ["the sweep to find it", _number(demo.sweep_seconds, "-"), "", "", "", ""],
        [
            f"controller ({summary.policy})",
            _number(mean("cost"), "-"),
            _number(mean("samples"), "-"),
            share("reached"),
            str(summary.to_default),
            str(summary.ratio),
        ],
    ]


def _number(value: float | None, missing: str) -> str:
    if value is None:
        return missing
    return f"{value:,.0f}" if value >= 100 else f"{value:.3f}"
