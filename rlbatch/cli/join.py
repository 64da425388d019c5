"""`rlbatch join`: several policy files as one."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import tyro

from rlbatch.cli import _shared


@dataclass(frozen=True)
class Command:
    """Join policy files to one that decides by the mean of their probabilities.

    Checkpoints of one training differ by as much as their evaluation's error, and their mean
    dithers less than each of them. The card is the first policy's, without its results.

    For example: rlbatch join a.safetensors b.safetensors -o both.safetensors
    """

    policies: Annotated[
        tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(help_behavior_hint="(required)")
    ]
    """The policy files, two or more, with the same actions."""
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"])]
    """The policy file to write (.safetensors)."""
    goodput_slack: float | None = None
    """How far below the most productive size, in doublings, the policy may go; the first policy's
    limit if unset."""

    def run(self) -> int:
        """Write the file."""
        from rlbatch.errors import ConfigurationError
        from rlbatch.policy.file import load_policy, save_policy
        from rlbatch.policy.learned import join

        if len(self.policies) < 2:
            raise ConfigurationError(
                f"Expected two or more policy files to join, got {len(self.policies)}."
            )
        _shared.require_new_policy_file(self.out)
        joined = join([load_policy(path) for path in self.policies])
        if self.goodput_slack is not None:
            joined = replace(joined, goodput_slack=self.goodput_slack)
        save_policy(self.out, joined, replace(joined.card, results={}))
        _shared.say(str(self.out))
        return 0
