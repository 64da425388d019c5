"""Processes that share the runs of a command, and stop with it."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from typing import Any

from rlbatch.agents.executor import start_worker

_TICK = 0.5  # seconds


class Workers:
    """Runs work in processes, each with one thread; one worker is this process itself."""

    def __init__(self, count: int) -> None:
        """Start nothing yet.

        Args:
            count: Processes.
        """
        self.count = count
        self._pool: ProcessPoolExecutor | None = None

    def run(
        self,
        work: Callable[[Any], Any],
        items: Sequence[Any],
        *,
        needed: int | None = None,
        until: float = float("inf"),
        tick: Callable[[], None] = lambda: None,
    ) -> Iterator[tuple[Any, Any]]:
        """Yield each item with its result, as they are finished.

        Args:
            work: Called with each item; known by its module and name.
            items: In the order in which they are begun.
            needed: So many are begun whatever the time is; None for all.
            until: When, by `time.monotonic`, no more are begun.
            tick: Called twice a second while work is waited for, by several processes.
        """
        least = len(items) if needed is None else needed
        waiting = iter(
            item for place, item in enumerate(items) if place < least or time.monotonic() < until
        )
        if self.count == 1:
            for item in waiting:
                yield item, work(item)
                tick()
            return
        pool = self._started()
        running: dict[Future[Any], Any] = {}
        while True:
            while len(running) < self.count and (item := next(waiting, None)) is not None:
                running[pool.submit(work, item)] = item
            if not running:
                return
            finished = wait(running, timeout=_TICK, return_when=FIRST_COMPLETED).done
            tick()
            for future in finished:
                yield running.pop(future), future.result()

    def _started(self) -> ProcessPoolExecutor:
        if self._pool is None:
            context = multiprocessing.get_context("spawn")  # forking with threads can hang
            self._pool = ProcessPoolExecutor(
                self.count, mp_context=context, initializer=start_worker, initargs=(os.getpid(),)
            )
        return self._pool

    def close(self) -> None:
        """End the processes, in the middle of a run if need be."""
        if self._pool is None:
            return
        processes = list((getattr(self._pool, "_processes", None) or {}).values())
        self._pool.shutdown(wait=False, cancel_futures=True)
        for process in processes:
            process.terminate()
        self._pool = None
