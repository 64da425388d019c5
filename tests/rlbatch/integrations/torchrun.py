"""Runs jobs under torchrun: `launch` here starts the processes, `serve` runs in each of them.

Each process writes what it saw of each job to `FOLDER/NAME/RANK.pt`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

import torch


def launch(
    jobs: Sequence[Any], folder: Path, processes: int = 2
) -> dict[str, list[dict[str, Any]]]:
    """Run jobs, one after another, under torchrun; return what each process saw of each.

    Args:
        jobs: Dataclasses of one class, with a `name` each; the main part of their module calls
            `serve`.
        folder: Of the results.
        processes: On this machine.
    """
    folder.mkdir(exist_ok=True)
    told = folder / "jobs.json"
    told.write_text(json.dumps([asdict(job) for job in jobs]))
    # `accelerate launch` itself needs MPI for several processes on a CPU.
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc-per-node={processes}", "-m", type(jobs[0]).__module__, str(told)]
    path = os.pathsep.join([str(Path(__file__).parents[3]), os.environ.get("PYTHONPATH", "")])
    env = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "PYTHONPATH": path}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    return {
        job.name: [torch.load(folder / job.name / f"{rank}.pt") for rank in range(processes)]
        for job in jobs
    }


def serve(make: Callable[..., Any], run: Callable[[Any, Path], dict[str, Any]]) -> NoReturn:
    """Run the jobs of the file that the command line names, and end this process.

    Args:
        make: Returns a job of its fields; lists of the file are given as tuples.
        run: Runs it in the folder of all jobs and returns what it saw.
    """
    torch.set_num_threads(1)
    told = Path(sys.argv[1])
    for line in json.loads(told.read_text()):
        fields = {k: tuple(v) if isinstance(v, list) else v for k, v in line.items()}
        job = make(**fields)
        (told.parent / job.name).mkdir(exist_ok=True)
        seen = run(job, told.parent)
        torch.save(seen, told.parent / job.name / f"{os.environ['RANK']}.pt")
    torch.distributed.barrier()
    sys.stdout.flush()
    os._exit(0)  # see `rank_runs.leave`
