"""`rlbatch replay`: what another policy would have decided on a recorded run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from rlbatch.cli import _shared

if TYPE_CHECKING:
    from rlbatch.inspect.reading import RunLog
    from rlbatch.inspect.replay import Replayed


@dataclass(frozen=True)
class Command:
    """Ask a policy what it would have decided after each chunk of a recorded run.

    It sees what was recorded, so its decisions have no effect: where it would have parted, what
    follows is the recorded run's and not its own. Without --policy the recorded policy is asked
    again, and must repeat itself.

    For example: rlbatch replay runs/first --policy goodput
    """

    log: Annotated[Path, tyro.conf.Positional]
    """Folder of the log."""
    policy: str | None = None
    """`default`, a policy file, or a rule such as fixed:64; the recorded one if unset."""
    json: bool = False
    """Print one JSON object a decision."""

    def run(self) -> int:
        """Print what it decides; with the recorded policy, 1 where it does not repeat itself."""
        from rlbatch.errors import ConfigurationError
        from rlbatch.inspect.reading import read_log
        from rlbatch.inspect.replay import recorded_policy, replay
        from rlbatch.policy.registry import resolve_policy

        if not self.log.exists():
            raise ConfigurationError(
                f"There is no {self.log}. Name the folder that a run wrote with --out."
            )
        policy = None if self.policy is None else resolve_policy(self.policy)
        log = read_log(self.log)
        made = list(replay(log, recorded_policy(log.run) if policy is None else policy))
        if self.json:
            _shared.print_json_lines([_content(one) for one in made])
        else:
            self._print(log, made)
        repeated = all(one.same_request for one in made)
        return 0 if policy is not None or repeated else 1

    def _print(self, log: RunLog, made: Sequence[Replayed]) -> None:
        from rlbatch.inspect.overview import grid_lines, title
        from rlbatch.inspect.text import printable

        name = printable(self.policy or "the recorded policy")
        apart = [one for one in made if not (one.same_request and one.same_size)]
        print(title(log))
        print(f"{name}, asked after each of {len(made):,} chunks:")
        if not apart:
            print("the same decisions throughout.")
            return
        first = apart[0].record
        print(
            f"{len(made) - len(apart):,} decisions are the same, {len(apart):,} are others; the "
            f"first at step {first.step:,} ({first.samples_seen:,} samples)."
        )
        print()
        print("\n".join(grid_lines(_COLUMNS, [_row(one) for one in apart], _width())))


_COLUMNS = ("step", "samples", "size", "recorded", "replayed", "why")


def _width() -> int:
    from rlbatch.cli.inspect import terminal_width

    return terminal_width()


def _row(one: Replayed) -> tuple[str, ...]:
    record, decision = one.record, one.decision
    numbers = (record.step, record.samples_seen, record.batch_size_before, record.batch_size)
    return (
        *(f"{value:,}" for value in numbers),
        f"{decision.batch_size:,}",
        "; ".join(decision.reasons),
    )


def _content(one: Replayed) -> dict[str, Any]:
    import math

    record, decision = one.record, one.decision
    asked = decision.requested_log2_change
    return {
        "index": record.index,
        "step": record.step,
        "samples": record.samples_seen,
        "batch_size_before": record.batch_size_before,
        "recorded_batch_size": record.batch_size,
        "batch_size": decision.batch_size,
        "requested_log2_change": asked if math.isfinite(asked) else None,
        "same": one.same_request and one.same_size,
        "reasons": list(decision.reasons),
    }
