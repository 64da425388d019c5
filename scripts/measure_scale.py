"""How what rlbatch costs grows: with parameters, ranks, the length of a chunk, and decisions.

    python scripts/measure_scale.py [--parts logs chunks ranks parameters] [--decisions 100 1000]

Prints one Markdown table a part, and each row on standard error as soon as it is measured. The
growth exponent is the slope between the last two rows of log(cost) over log(size): 1 is linear.
Each measurement runs in a forked process, whose peak of memory is what `getrusage` says (so on
Linux only); times are those of the process's processor, so that other work on the machine disturbs
little. A million decisions need 7 GB of memory and 3 GB of disk.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from scale_of_logs import Row, log_row, peak_megabytes, writing_row  # beside this file
from torch import nn
from torch.utils.data import DataLoader, Dataset, DistributedSampler

import rlbatch
from rlbatch.envs.threads import use_one_thread
from rlbatch.signals.cadence import Cadence

PARTS = ("writing", "logs", "chunks", "ranks", "parameters")


class Numbers(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """As many samples as are asked for, made when they are."""

    def __init__(self, samples: int, features: int) -> None:
        self.samples, self.x = samples, torch.randn(256, features)

    def __len__(self) -> int:
        return self.samples

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        row = self.x[index % 256]
        return row, row[:1]


def network(parameters: int) -> nn.Module:
    """Return two layers with about so many parameters."""
    width = max(4, round(math.sqrt(parameters)))
    return nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 1))


def plain_steps(parameters: int, steps: int) -> Row:
    model = network(parameters)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    loader = DataLoader(Numbers(10**6, model[0].in_features), 8)  # type: ignore[index]
    times: list[float] = []
    for x, y in loader:
        began = time.process_time()
        nn.functional.mse_loss(model(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
        times.append(time.process_time() - began)
        if len(times) == steps:
            break
    return {"plain ms": 1e3 * statistics.median(times[2:]), "plain MB": peak_megabytes()}


def controlled_steps(parameters: int, steps: int) -> Row:
    model = network(parameters)
    times = drive(model, steps, Cadence(minimum=10, growth=0.0, maximum=10))
    ordered = sorted(times[2:])
    return {
        "step ms": 1e3 * statistics.median(ordered),
        "mean ms": 1e3 * statistics.fmean(ordered),
        "MB": peak_megabytes(),
    }


def drive(model: nn.Module, steps: int, cadence: Cadence) -> list[float]:
    """Train under the rule goodput, at a constant size, and return each step's seconds."""
    features = next(model.parameters()).shape[1]
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    ranks = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
    data = Numbers(10**6, features)
    sampler = DistributedSampler(data) if ranks > 1 else None
    controller = rlbatch.BatchController(
        model,
        optimizer,
        batch_size=8 * ranks,
        policy="goodput",
        cadence=cadence,
        min_batch_size=8 * ranks,
        max_batch_size=8 * ranks,
    )
    loader = controller.loader(DataLoader(data, 8, sampler=sampler))
    times: list[float] = []
    for x, y in loader:
        began = time.process_time()
        controller.backward(nn.functional.mse_loss(model(x), y))
        controller.step()
        times.append(time.process_time() - began)
        if len(times) == steps:
            break
    controller.close()
    return times


def chunk_rows(length: int) -> Row:
    """Return a step's milliseconds; the mean holds the ends of chunks, the median does not."""
    times = drive(network(10**4), max(3 * length, 512), Cadence(length, 0.0, length))[length:]
    return {"median ms": 1e3 * statistics.median(times), "mean ms": 1e3 * statistics.fmean(times)}


def rank_row(ranks: int) -> Row:
    """Return what a chunk sends on so many ranks of this machine, of rank 0."""
    with tempfile.TemporaryDirectory() as folder:
        context = get_context("fork")
        arguments = [(rank, ranks, folder) for rank in range(ranks)]
        processes = [context.Process(target=_rank, args=one) for one in arguments]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        return json.loads((Path(folder) / "row.json").read_text())


def _rank(rank: int, ranks: int, folder: str) -> None:
    torch.set_num_threads(1)
    calls: list[int] = []
    distributed = torch.distributed
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=ranks
    )
    for name in ("all_reduce", "broadcast", "all_gather", "barrier", "all_gather_object"):
        setattr(distributed, name, _counted(getattr(distributed, name), calls))
    torch.manual_seed(0)
    model: nn.Module = network(10**4)
    if ranks > 1:
        model = nn.parallel.DistributedDataParallel(model)
    before = _counts(model, 50, calls)
    after = _counts(model, 100, calls)
    chunks, number = 5.0, after[0] - before[0]
    if rank == 0:
        row = {
            "collectives a chunk": number / chunks,
            "bytes a chunk": (after[1] - before[1]) / chunks,
        }
        (Path(folder) / "row.json").write_text(json.dumps(row))
    distributed.barrier()
    distributed.destroy_process_group()


def _counts(model: nn.Module, steps: int, calls: list[int]) -> tuple[int, int]:
    """Return collectives and bytes of a run of chunks of ten steps."""
    calls.clear()
    drive(model, steps, Cadence(10, 0.0, 10))
    return len(calls), sum(calls)


def _counted(function: Callable[..., Any], calls: list[int]) -> Callable[..., Any]:
    def call(*arguments: Any, **more: Any) -> Any:
        first = arguments[0] if arguments else None
        calls.append(first.nbytes if isinstance(first, torch.Tensor) else 0)
        return function(*arguments, **more)

    return call


def alone(function: Callable[..., Row], *arguments: Any) -> Row:
    """Return what a function returns in a new process."""
    with get_context("fork").Pool(1, use_one_thread) as pool:
        return pool.apply(function, arguments)


def table(what: str, sizes: Sequence[int], rows: Sequence[Row]) -> str:
    """Return a table with the growth exponent of each column, over the last two rows."""
    names = list(rows[0])
    lines = [f"| {what} | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for size, row in zip(sizes, rows, strict=True):
        lines.append(f"| {size:,} | {' | '.join(f'{row[name]:,.4g}' for name in names)} |")
    if len(rows) > 1:
        grown = math.log(sizes[-1] / sizes[-2])
        slopes = [
            math.log(max(rows[-1][name], 1e-9) / max(rows[-2][name], 1e-9)) / grown
            for name in names
        ]
        lines.append(f"| exponent | {' | '.join(f'{slope:.2f}' for slope in slopes)} |")
    return "\n".join(lines)


def both(parameters: int) -> Row:
    steps = 40 if parameters < 10**8 else 14
    row = alone(plain_steps, parameters, steps) | alone(controlled_steps, parameters, steps)
    return row | {"memory x": row["MB"] / row["plain MB"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument(
        "--decisions", nargs="+", type=int, default=[100, 1000, 10_000, 100_000, 1_000_000]
    )
    parser.add_argument("--lengths", nargs="+", type=int, default=[8, 64, 512])
    parser.add_argument("--ranks", nargs="+", type=int, default=[1, 2, 4, 8])
    parser.add_argument(
        "--parameters", nargs="+", type=int, default=[10**5, 10**6, 10**7, 10**8, 3 * 10**8]
    )
    given = parser.parse_args()
    measured: dict[str, tuple[str, list[int], Callable[[int], Row]]] = {
        "writing": ("decisions", given.decisions, lambda n: alone(writing_row, n)),
        "logs": ("decisions", given.decisions, lambda n: alone(log_row, n)),
        "chunks": ("steps of a chunk", given.lengths, lambda n: alone(chunk_rows, n)),
        "ranks": ("ranks", given.ranks, rank_row),
        "parameters": ("parameters", given.parameters, both),
    }
    for part in given.parts:
        what, sizes, measure = measured[part]
        rows: list[Row] = []
        for size in sizes:
            rows.append(measure(size))
            print(f"{what} {size:,}: {rows[-1]}", file=sys.stderr, flush=True)
        print(f"{table(what, sizes, rows)}\n", flush=True)


if __name__ == "__main__":
    main()
