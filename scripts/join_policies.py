"""Join policy files to one whose probabilities are the mean of theirs.

    python scripts/join_policies.py --out FILE POLICY POLICY ... [--goodput-slack 1.0]

Checkpoints of one training differ by as much as their evaluation's error, and their mean dithers
less than each of them. The card is the first policy's.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from rlbatch.policy.file import load_policy, save_policy
from rlbatch.policy.learned import join


def main() -> None:
    """Write the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("policies", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--goodput-slack", type=float, help="see LearnedPolicy; none if not given")
    arguments = parser.parse_args()
    joined = join([load_policy(path) for path in arguments.policies])
    save_policy(arguments.out, replace(joined, goodput_slack=arguments.goodput_slack))


if __name__ == "__main__":
    main()
