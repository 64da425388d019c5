"""`rlbatch profile`: what a step costs on this machine, and what fits."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rlbatch.cli import _shared

if TYPE_CHECKING:
    import torch

    from rlbatch.agents.search.profiling import Measured

_SCATTERED = 0.3  # mean relative error of a fit; beyond it a curve says little


@dataclass(frozen=True)
class Command:
    """Measure a task's steps on this machine and write a device profile.

    Seconds, memory and, where the hardware tells (NVML, RAPL), joules over micro-batch sizes. The
    largest size that fits is approached from below. Every --profile takes the file that is written.

    For example: rlbatch profile --task digits-cnn --out out/profile
    """

    task: str
    """Name of a task, or file.py:function."""
    out: Path
    """New folder for profile.json, measured.json and profile.png."""
    device: str | None = None
    """Where to run, such as cpu or cuda:0; by default where the task puts its model."""
    name: str | None = None
    """Of the profile; by default the task's and the device's."""
    memory_limit: str | None = None
    """Bytes that a pass may take, such as 2GB; by default what is free, on a CPU half of it all."""
    margin: float = 0.1
    """Share of the memory to leave free."""
    largest: int = 65_536
    """No larger micro-batch is looked for."""
    rounds: int = 7
    """Timings of each size."""
    max_seconds: float = 2.0
    """No pass much longer than that is run."""
    threads: int | None = None
    """Threads of a CPU; by default as many as PyTorch takes."""
    json: bool = False
    """Print what was measured as JSON."""

    def run(self) -> int:
        """Measure, and print and write what came out."""
        import json

        from rlbatch.agents.search.profiling import measure
        from rlbatch.agents.search.units import parse_bytes
        from rlbatch.envs.task import resolve_task
        from rlbatch.files import write_atomically

        limit = None if self.memory_limit is None else parse_bytes(self.memory_limit)
        self._check()
        device = self._device()
        task = resolve_task(self.task)
        _shared.require_new_folder(self.out)
        self._use_threads()
        name = self.name or f"{task.name}-{device or 'default'}"
        with _shared.progress("timings") as update:
            found = measure(
                task,
                name,
                device=device,
                memory_limit=limit,
                margin=self.margin,
                most=self.largest,
                rounds=self.rounds,
                max_seconds=self.max_seconds,
                on_size=update,
            )
        self.out.mkdir(parents=True, exist_ok=True)
        content = found.to_json()
        write_atomically(self.out / "profile.json", found.fitted.profile.to_json() + "\n")
        write_atomically(self.out / "measured.json", json.dumps(content, indent=2) + "\n")
        self._draw(found)
        if self.json:
            _shared.print_json(content)
        else:
            print_measured(found)
            print(f"Use it: --profile {self.out / 'profile.json'}")
        return 0

    def _check(self) -> None:
        from rlbatch.errors import ConfigurationError

        if not 0 <= self.margin < 1 or self.largest < 1 or self.rounds < 1:
            raise ConfigurationError(
                "margin must lie from 0 to 1, largest and rounds be at least 1, got "
                f"{self.margin}, {self.largest}, {self.rounds}."
            )
        if not self.max_seconds > 0 or (self.threads is not None and self.threads < 1):
            raise ConfigurationError(
                f"max_seconds and threads must be positive, got {self.max_seconds}, {self.threads}."
            )

    def _device(self) -> torch.device | None:
        import torch

        from rlbatch.errors import ConfigurationError

        if self.device is None:
            return None
        try:
            device = torch.device(self.device)
            torch.empty(1, device=device)
        except (RuntimeError, AssertionError) as error:
            raise ConfigurationError(
                f"There is no device {self.device!r} here ({str(error).splitlines()[0]}). Name "
                "another one, such as cpu or cuda:0."
            ) from error
        return device

    def _use_threads(self) -> None:
        import torch

        if self.threads is not None:
            torch.set_num_threads(self.threads)

    def _draw(self, found: Measured) -> None:
        from rlbatch.agents.search.profile_figure import draw_profile
        from rlbatch.errors import MissingExtraError

        try:
            draw_profile(found.fitted, found.steps, found.largest, self.out / "profile.png")
        except MissingExtraError as error:
            _shared.note(f"rlbatch: No figure: {error}")


def print_measured(found: Measured) -> None:
    """Print the timings beside the fitted curve, and what fits."""
    import numpy as np

    from rlbatch.agents.search.units import show_bytes

    profile, fitted = found.fitted.profile, found.fitted
    rows: list[list[str]] = []
    for step in found.steps:
        seconds = step.seconds + float(np.median(step.update_seconds))
        curve = float(profile.step_seconds(step.size))
        rows.append(
            [
                f"{step.size:,}",
                f"{1e3 * seconds:.4g}",
                f"{1e3 * curve:.4g}",
                f"{step.size / seconds:,.0f}",
                "" if step.bytes is None else show_bytes(step.bytes),
                "" if step.joules is None else f"{step.joules:.3g}",
            ]
        )
    columns = ["micro-batch", "ms a step", "fitted", "samples/s", "memory of a pass", "joules"]
    knee = profile.launch_seconds / profile.sample_seconds
    _shared.print_table(f"{profile.name} on {found.device}", columns, rows)
    for name, (low, high) in fitted.intervals.items():
        print(f"{name}: {getattr(profile, name):.4g} [{low:.4g}, {high:.4g}]")
    print(f"The fit is off by {fitted.error:.1%} on average; throughput turns at {knee:,.0f}.")
    if fitted.error > _SCATTERED:
        print("The timings scatter: was there other work? Measure again without it.")
    largest = found.largest
    how = "tried" if largest.tested else "foretold from smaller ones, which took long already"
    how = "no larger one was looked for" if largest.bounded else how
    print(
        f"Largest micro-batch: {largest.size:,} ({how}), {show_bytes(largest.needed)} of "
        f"{show_bytes(largest.limit)} with {largest.margin:.0%} left free."
    )
    told = f"by {found.meter}" if found.meter else "not told by this hardware: powers are assumed"
    print(f"Energy: {told}.")
