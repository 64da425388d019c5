"""`rlbatch bench overhead`: what the controller costs an optimizer step."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rlbatch.cli import _shared

if TYPE_CHECKING:
    from rlbatch.agents.evaluate.overhead import OverheadRow


@dataclass(frozen=True)
class Command:
    """Measure what the controller costs an optimizer step, beside the same training without it.

    Apart: what every step pays, what a step pays in which the gradient noise is measured,
    and what a decision costs; and all of them in a run. Minutes; best on a machine with nothing
    else to do.

    For example: rlbatch bench overhead --model cnn transformer --out overhead.jsonl
    """

    model: tuple[Literal["mlp", "cnn", "transformer"], ...] = ("mlp", "cnn", "transformer")
    """Small models to train."""
    batch_size: tuple[int, ...] = (16, 64, 256)
    """Samples of a step."""
    policy: tuple[str, ...] = ("fixed", "default", "goodput")
    """Policies, as for `rlbatch bench`."""
    device: tuple[str, ...] = ()
    """Torch devices; the CPU and, where there is one, CUDA if unset."""
    rounds: int = 25
    """Pairs of turns with and without the controller."""
    run_steps: int = 1000
    """Optimizer steps of the run for which the parts are added up."""
    out: Path | None = None
    """File for one JSON object a line; a new one."""
    json: bool = False
    """Print these objects instead of a table."""

    def run(self) -> int:
        """Measure and print."""
        from rlbatch.agents.evaluate.overhead import OverheadSettings, measure_overhead
        from rlbatch.errors import ConfigurationError

        if self.out is not None and self.out.exists():
            raise ConfigurationError(f"{self.out} already exists. Name a new file with --out.")
        settings = OverheadSettings(
            models=self.model,
            batch_sizes=self.batch_size,
            policies=self.policy,
            devices=self.device,
            rounds=self.rounds,
            run_steps=self.run_steps,
        )
        with _shared.progress("trainings") as update:
            rows = list(measure_overhead(settings, update))
        found = [row.as_json() for row in rows]
        if self.out is not None:
            import json

            from rlbatch.files import write_atomically

            lines = [json.dumps(row, allow_nan=False) + "\n" for row in found]
            self.out.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self.out, "".join(lines))
        if self.json:
            _shared.print_json_lines(found)
        else:
            _print(rows, self.run_steps)
        return 0


def _print(rows: Iterable[OverheadRow], run_steps: int) -> None:
    cells = [
        [
            *(row.device, row.model, str(row.batch_size), row.policy, row.part),
            f"{row.plain_microseconds:,.0f}",
            "" if row.own_microseconds is None else f"{row.own_microseconds:+,.0f}",
            f"{100 * (row.ratio - 1):+.2f} % [{100 * (row.ratio_low - 1):+.2f}, "
            f"{100 * (row.ratio_high - 1):+.2f}]",
            "" if row.part == "run" or not row.policy else f"{row.run_share:.3f}",
        ]
        for row in rows
    ]
    columns = [
        *("device", "model", "batch size", "policy", "part", "plain step, us", "own, us"),
        *("step against a plain one [95%]", "share of steps"),
    ]
    caption = (
        f"run: of {run_steps} steps, the parts as often as they occur; own: the controller's time "
        "outside of passes and optimizer"
    )
    text = ["device", "model", "policy", "part"]
    _shared.print_table("Overhead", columns, cells, text=text, caption=caption)
