"""Compute the fixed-batch learning curves of built-in tasks.

    python scripts/make_curves.py --out DIR [--task NAME ...]

Existing tables are kept, so that a stopped run can be continued.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch

from rlbatch.envs.curves import compute_table
from rlbatch.envs.task import task_names


def main() -> None:
    """Make one table a task."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--task", nargs="*", default=task_names())
    parser.add_argument("--seeds", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name in arguments.task:
        path = arguments.out / f"{name}.npz"
        if path.exists():
            continue
        start = time.perf_counter()
        table = compute_table(name, arguments.seeds)
        table.save(path)
        print(
            f"{name}: {len(table.points)} points, {time.perf_counter() - start:.0f} s", flush=True
        )


if __name__ == "__main__":
    main()
