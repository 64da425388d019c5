"""What AdaptDL costs an optimizer step, beside DistributedDataParallel, rlbatch and the plain loop.

AdaptDL 0.2.11 pins nothing and runs with a present torch, on one process by gloo:

    pip install adaptdl  # into an environment of its own, with rlbatch in it
    python scripts/compare_adaptdl.py --model mlp cnn transformer

All four train the same model in turns; the batch size stays. Printed are medians over rounds of the
processor time of a step and of its ratio to the plain loop.
"""

from __future__ import annotations

import argparse
import importlib
import os
import random
import statistics
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from rlbatch.agents.evaluate.overhead_workloads import MODELS, Workload, controlled, plain
from rlbatch.control.config import ControllerConfig

WARM_UP, STEPS, FIRST = 3, 8, 150


def distributed(workload: Workload) -> Iterator[float]:
    model, optimizer, loader = workload.parts()
    wrapped = DistributedDataParallel(model)
    while True:
        for x, y in loader:
            nn.functional.cross_entropy(wrapped(x), y).backward()
            optimizer.step()
            optimizer.zero_grad()
            yield 0.0


def adaptive(adaptdl: Any, workload: Workload) -> Iterator[float]:
    model, optimizer, loader = workload.parts()
    wrapped = adaptdl.AdaptiveDataParallel(model, optimizer, name=workload.name)
    batches = adaptdl.AdaptiveDataLoader(
        loader.dataset,
        batch_size=workload.batch_size,
        shuffle=True,
        drop_last=True,
        collate_fn=loader.collate_fn,
    )
    for _ in adaptdl.remaining_epochs_until(10**6):
        for x, y in batches:
            optimizer.zero_grad()
            nn.functional.cross_entropy(wrapped(x), y).backward()
            optimizer.step()
            yield 0.0


def turn(arm: Iterator[float], steps: int) -> float:
    for _ in range(WARM_UP):
        next(arm)
    began = time.process_time()
    for _ in range(steps):
        next(arm)
    return (time.process_time() - began) / steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=25)
    arguments = parser.parse_args()
    for name, value in {
        "ADAPTDL_MASTER_ADDR": "127.0.0.1",
        "ADAPTDL_MASTER_PORT": "29533",
        "ADAPTDL_REPLICA_RANK": "0",
        "ADAPTDL_NUM_REPLICAS": "1",
    }.items():
        os.environ.setdefault(name, value)
    adaptdl: Any = importlib.import_module("adaptdl.torch")
    torch.set_num_threads(1)
    adaptdl.init_process_group("gloo")
    for model in arguments.model:
        workload = Workload(model, arguments.batch_size, torch.device("cpu"))
        arms: dict[str, Iterator[float]] = {
            "plain": plain(workload),
            "DistributedDataParallel": distributed(workload),
            "AdaptDL": adaptive(adaptdl, workload),
            "rlbatch": controlled(workload, "default", ControllerConfig(shadow=True)),
        }
        for _ in range(FIRST):  # rlbatch decides and measures most often at the start
            for arm in arms.values():
                next(arm)
        seconds: dict[str, list[float]] = {name: [] for name in arms}
        names = list(arms)
        for _ in range(arguments.rounds):
            random.shuffle(names)
            for name in names:
                seconds[name].append(turn(arms[name], STEPS))
        for name, times in seconds.items():
            ratios = [time / base for time, base in zip(times, seconds["plain"], strict=True)]
            median = 1e6 * statistics.median(times)
            print(f"{model:12} {name:24} {median:8,.0f} us  x{statistics.median(ratios):.2f}")


if __name__ == "__main__":
    main()
