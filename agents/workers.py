"""Work that a command shares among processes or a cluster's workers, and that stops with it."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any, Self

from rlbatch.agents.executor import Executor, open_executor


class Workers:
    """Runs work side by side, as `open_executor` does, until a time that the caller gives.

    A context manager: after an error or Ctrl-C what still runs is ended at once.
    """

    def __init__(self, count: int | None, cluster: str | None = None) -> None:
        """Start nothing yet.

        Args:
            count: Processes, also where it is one. On a cluster the most runs at the same time;
                None for as many as it has CPUs.
            cluster: Address as for `open_executor`; None stays on this machine.
        """
        self._jobs, self._cluster = count or 1, cluster
        self._stack = ExitStack()
        self._executor: Executor | None = None

    def __enter__(self) -> Self:
        """Start nothing yet."""
        return self

    def __exit__(self, *error: Any) -> None:
        """End what was started."""
        self._executor = None
        self._stack.__exit__(*error)

    @property
    def count(self) -> int:
        """How many runs there is room for at the same time."""
        return self._started().width if self._cluster is not None else self._jobs

    @property
    def cluster(self) -> str | None:
        """Address of the cluster."""
        return self._cluster

    @property
    def shares_files(self) -> bool:
        """What work writes to a path is there for this process, too."""
        return self._cluster is None

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
            tick: Called twice a second while work is waited for.
        """
        least = len(items) if needed is None else needed
        waiting = (
            (place, item)
            for place, item in enumerate(items)
            if place < least or time.monotonic() < until
        )
        executor = self._started()
        queue: deque[tuple[int, Any]] = deque()
        begun: dict[int, Any] = {}

        def fill() -> None:  # no further than there is room: time decides about the rest
            while len(begun) < executor.width and (entry := next(waiting, None)) is not None:
                begun[entry[0]] = entry[1]
                queue.append(entry)

        fill()
        for place, result in executor.run(work, queue, tick):
            item = begun.pop(place)
            fill()
            yield item, result

    def _started(self) -> Executor:
        if self._executor is None:
            opened = open_executor(self._jobs, self._cluster, apart=True)
            self._executor = self._stack.enter_context(opened)
        return self._executor
