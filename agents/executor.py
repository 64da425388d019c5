"""Many independent runs side by side: one interface, in this process, in several, or on a cluster.

A run is a key, which names it in results and errors, and an item, which a function turns into a
result. Results come in the order in which runs end. Items are taken as there is room for them, so
that a caller may append further ones to the queue while results come in.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Hashable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol, TypeVar

from rlbatch.envs.threads import use_one_thread
from rlbatch.errors import ConfigurationError

POLL_SECONDS = 0.5
"""Time between two looks at how far runs are."""

Item = TypeVar("Item")
Result = TypeVar("Result")
Key = TypeVar("Key", bound=Hashable)
OnWait = Callable[[], None]


@dataclass(frozen=True)
class Deadline:
    """When no more runs are begun; those that run then are finished.

    Attributes:
        until: By `time.monotonic`.
        needed: So many are begun whatever the time is.
    """

    until: float = math.inf
    needed: int = 0

    def allows(self, begun: int) -> bool:
        """Return whether another run is begun after so many."""
        return begun < self.needed or time.monotonic() < self.until


NO_DEADLINE = Deadline()


class Executor(Protocol):
    """Runs a function on items.

    Attributes:
        width: How many runs it has room for at the same time.
        shares_files: What a run writes to a path is there for the caller, too.
    """

    shares_files: bool

    @property
    def width(self) -> int:
        """How many runs it has room for at the same time."""
        ...

    def run(
        self,
        function: Callable[[Item], Result],
        queue: deque[tuple[Key, Item]],
        on_wait: OnWait | None = None,
        deadline: Deadline = NO_DEADLINE,
    ) -> Generator[tuple[Key, Result]]:
        """Yield the key and the result of each run as it ends.

        That is until the queue is empty or, with a deadline, the time is over.

        Args:
            function: Of a module, so that it can be sent; it may be called more than once for an
                item whose process was lost.
            queue: Keys and items, taken from its left; the caller may append while it iterates.
            on_wait: Called about every half second.
            deadline: When no more runs are begun.

        Raises:
            Exception: Whatever the function raised; the rest of the queue is not run.
        """
        ...


@contextmanager
def open_executor(
    jobs: int | None = 1, cluster: str | None = None, *, apart: bool = False
) -> Generator[Executor]:
    """Run a block with what runs functions side by side.

    After an error or Ctrl-C all that still runs is ended at once.

    Args:
        jobs: Processes; 1 means this one. On a cluster, how many runs it has at the same time, and
            1 means as many as it has CPUs. None means one a core, or all CPUs of the cluster.
        cluster: Address of a Ray cluster or `auto` for the one that this machine belongs to; None
            stays on this machine.
        apart: Where it is one process, another than this one.

    Raises:
        ConfigurationError: `jobs` is no positive number, or there is no cluster at that address.
        MissingExtraError: A cluster is asked for, and Ray is not installed.
    """
    if jobs is None:
        jobs = (os.cpu_count() or 1) if cluster is None else 1
    if jobs < 1:
        raise ConfigurationError(f"jobs must be at least 1, got {jobs}.")
    if cluster is not None:
        from rlbatch.agents.ray_executor import open_cluster

        with open_cluster(cluster, jobs if jobs > 1 else None) as executor:
            yield executor
    elif jobs == 1 and not apart:
        yield SerialExecutor()
    else:
        with _processes(jobs) as executor:
            yield executor


class SerialExecutor:
    """One run after the other, in this process."""

    width, shares_files = 1, True

    def run(
        self,
        function: Callable[[Item], Result],
        queue: deque[tuple[Key, Item]],
        on_wait: OnWait | None = None,
        deadline: Deadline = NO_DEADLINE,
    ) -> Generator[tuple[Key, Result]]:
        """Run them; see `Executor.run`."""
        begun = 0
        while queue and deadline.allows(begun):
            key, item = queue.popleft()
            begun += 1
            yield key, function(item)
            if on_wait is not None:
                on_wait()


class ProcessExecutor:
    """Runs in processes of this machine."""

    shares_files = True

    def __init__(self, pool: ProcessPoolExecutor, width: int) -> None:
        self._pool, self.width = pool, width

    def run(
        self,
        function: Callable[[Item], Result],
        queue: deque[tuple[Key, Item]],
        on_wait: OnWait | None = None,
        deadline: Deadline = NO_DEADLINE,
    ) -> Generator[tuple[Key, Result]]:
        """Run them; see `Executor.run`. A killed process ends all: here that is want of memory."""
        pending: dict[Future[Result], Key] = {}
        begun = 0
        # Twice as many, so that the next is there when one ends; but none waits beyond a deadline.
        room = self.width if deadline.until < math.inf else 2 * self.width
        while True:
            while queue and len(pending) < room and deadline.allows(begun):
                key, item = queue.popleft()
                pending[self._pool.submit(function, item)] = key
                begun += 1
            if not pending:
                return
            done = wait(pending, POLL_SECONDS, FIRST_COMPLETED).done
            if on_wait is not None:
                on_wait()
            for future in done:
                yield pending.pop(future), future.result()


@contextmanager
def _processes(jobs: int) -> Generator[ProcessExecutor]:
    """Run a block with processes of one thread each; none outlives this one for long."""
    context = multiprocessing.get_context("spawn")  # forking a process with threads can hang
    others = set(multiprocessing.active_children())
    with ProcessPoolExecutor(
        jobs, mp_context=context, initializer=_start_worker, initargs=(os.getpid(),)
    ) as pool:
        try:
            yield ProcessExecutor(pool, jobs)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for child in set(multiprocessing.active_children()) - others:
                child.terminate()  # in the middle of a run, which the next attempt repeats
            raise


def _start_worker(parent: int) -> None:
    """Prepare a process of a pool: one thread, and an end with the process that started it."""
    use_one_thread()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the parent ends this one
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    """End this process once its parent is gone: one that was killed cannot end its workers."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)
