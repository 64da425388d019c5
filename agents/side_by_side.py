"""Trainings that do not wait for each other, each in a process of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

from rlbatch.agents.imitation import Report
from rlbatch.envs.processes import start_process
from rlbatch.errors import RlbatchError

Training = Callable[[Report], None]
"""Trains, and hands its figures on; whatever cloudpickle can take."""


def train_side_by_side(trainings: Mapping[int, Training], report: Report | None = None) -> None:
    """Run trainings at the same time, and return when all have ended.

    While the network of one is updated, which takes one core, the runs of another go on. What comes
    out is the same as one after the other.

    Args:
        trainings: By the numbers of the members that they make.
        report: Called with the figures of any, and its number as `member`.

    Raises:
        RlbatchError: One of them failed or died; the others were stopped.
    """
    running: dict[Connection, tuple[int, BaseProcess]] = {}
    try:
        for number, training in trainings.items():
            pipe, process = start_process(partial(_run, training), daemon=False)
            running[pipe] = number, process
        while running:
            for pipe in wait(list(running)):
                _receive(pipe, running, report)  # pyright: ignore[reportArgumentType]
    finally:
        for _, process in running.values():
            process.terminate()
            process.join()


def _receive(
    pipe: Connection, running: dict[Connection, tuple[int, BaseProcess]], report: Report | None
) -> None:
    number, process = running[pipe]
    try:
        message = pipe.recv()
    except EOFError:
        process.join()
        message = f"its process ended with exit code {process.exitcode}"
    if message is None:
        process.join()
        del running[pipe]
    elif isinstance(message, str):
        raise RlbatchError(
            f"The training of member {number} failed: {message}. All checkpoints are kept: mend "
            "the cause and resume."
        )
    elif report is not None:
        report({"member": float(number), **message})


def _run(training: Training, pipe: Connection) -> None:
    try:
        training(pipe.send)
        pipe.send(None)
    except (KeyboardInterrupt, BrokenPipeError):
        return  # who asked for it is gone, and its checkpoint is kept
    except Exception as error:
        pipe.send(f"{type(error).__name__}: {error}")
        raise
