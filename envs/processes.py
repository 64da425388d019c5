"""Processes for trainings and their runs, with a pipe to the one that starts them."""

from __future__ import annotations

import multiprocessing
import pickle
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from types import ModuleType


def start_process(
    work: Callable[[Connection], None], *, daemon: bool
) -> tuple[Connection, BaseProcess]:
    """Start a process that does some work, and return our end of the pipe to it, and the process.

    Args:
        work: Is called there with the other end of the pipe; whatever cloudpickle can take.
        daemon: Whether it ends with this process. One that does may start none itself.
    """
    import cloudpickle

    context = multiprocessing.get_context("spawn")  # threads of torch do not survive a fork
    ours, theirs = context.Pipe()
    # Pickled here, not by `Process`, so that nothing is imported there before `_begin`.
    process = context.Process(target=_begin, args=(theirs, cloudpickle.dumps(work)), daemon=daemon)
    process.start()
    theirs.close()
    return ours, process


def keep_tensorflow_out() -> None:
    """Let TensorBoard use its own stand-in for TensorFlow, which takes many seconds to import.

    It does so where its module `notf` can be imported, and has no other switch.
    """
    sys.modules.setdefault("tensorboard.compat.notf", ModuleType("tensorboard.compat.notf"))


def _begin(pipe: Connection, work: bytes) -> None:
    keep_tensorflow_out()
    pickle.loads(work)(pipe)
