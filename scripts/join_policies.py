"""Join policy files to one whose probabilities are the mean of theirs.

    python scripts/join_policies.py --out FILE POLICY POLICY ... [--goodput-slack 1.0]

Checkpoints of one training differ by as much as their evaluation's error, and their mean dithers
less than each of them. The card is the first policy's.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from rlbatch.errors import ConfigurationError
from rlbatch.policy.file import load_policy, save_policy
from rlbatch.policy.learned import LearnedPolicy


def main() -> None:
    """Write the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("policies", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--goodput-slack", type=float, help="see LearnedPolicy; none if not given")
    arguments = parser.parse_args()
    joined = join([load_policy(path) for path in arguments.policies])
    save_policy(arguments.out, replace(joined, goodput_slack=arguments.goodput_slack))


def join(policies: list[LearnedPolicy]) -> LearnedPolicy:
    """Return the policy of all members.

    Raises:
        ConfigurationError: Their actions or activations differ.
    """
    first = policies[0]
    for other in policies[1:]:
        for name in ("action_grid", "activation", "masked"):
            if getattr(other, name) != getattr(first, name):
                raise ConfigurationError(
                    f"Policies to join must have the same {name}, got {getattr(first, name)} and "
                    f"{getattr(other, name)}."
                )
    return replace(first, members=tuple(member for policy in policies for member in policy.members))


if __name__ == "__main__":
    main()
