"""Runs on a Ray cluster: remote tasks, each done again where its worker or its node was lost."""

from __future__ import annotations

import logging
import math
import os
from collections import deque
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

from rlbatch.agents.executor import NO_DEADLINE, POLL_SECONDS, Deadline, Item, Key, OnWait, Result
from rlbatch.envs.threads import use_one_thread
from rlbatch.errors import ClusterError, ConfigurationError
from rlbatch.extras import needs_extra

MAX_RETRIES = 4
"""How often a run is done again whose worker or node was lost, before that is an error."""


class RayExecutor:
    """Runs as tasks of a Ray cluster that this process is connected to.

    Tasks and not actors (nor `ray.util.multiprocessing.Pool`, which is made of actors): only tasks
    are done again when their node dies.
    """

    shares_files = False

    def __init__(self, most: int | None = None) -> None:
        import ray

        self._ray, self._most = ray, most
        # An error of the function is the caller's; only what was lost is done again.
        options = ray.remote(num_cpus=1, max_retries=MAX_RETRIES, retry_exceptions=False)
        self._call: Any = options(_call)

    @property
    def width(self) -> int:
        """Runs at the same time: the cluster's CPUs at this moment, or the caller's limit."""
        cpus = max(1, int(self._ray.cluster_resources().get("CPU", 1)))
        return cpus if self._most is None else min(cpus, self._most)

    def run(
        self,
        function: Callable[[Item], Result],
        queue: deque[tuple[Key, Item]],
        on_wait: OnWait | None = None,
        deadline: Deadline = NO_DEADLINE,
    ) -> Generator[tuple[Key, Result]]:
        """Run them; see `Executor.run`.

        Raises:
            ClusterError: A run was lost more often than `MAX_RETRIES`, or the cluster itself was.
        """
        pending: dict[Any, Key] = {}
        begun = 0
        try:
            while True:
                # Beyond the CPUs so that the next is there when one ends, if no deadline decides
                # about it; not all, for the scheduler's and the driver's sake.
                room = self._most or self.width * (2 if deadline.until == math.inf else 1)
                while queue and len(pending) < room and deadline.allows(begun):
                    key, item = queue.popleft()
                    pending[self._call.remote(function, item, os.getcwd())] = key
                    begun += 1
                if not pending:
                    return
                done, _ = self._ray.wait(list(pending), num_returns=1, timeout=POLL_SECONDS)
                if on_wait is not None:
                    on_wait()
                for reference in done:
                    key = pending.pop(reference)
                    yield key, self._result(reference, key)
        finally:
            for reference in pending:
                self._ray.cancel(reference, force=True)

    def _result(self, reference: Any, key: Any) -> Any:
        errors = self._ray.exceptions
        try:
            return self._ray.get(reference)
        except errors.RayTaskError as error:
            cause = getattr(error, "cause", None)
            raise (cause if isinstance(cause, Exception) else error) from error
        except errors.RayError as error:
            raise ClusterError(
                f"The run {key} was lost {MAX_RETRIES + 1} times, or the cluster was "
                f"({type(error).__name__}: {str(error).strip().splitlines()[0]}). Look at the "
                "memory of the nodes, and repeat the command to go on; what was finished is kept."
            ) from error


@contextmanager
def open_cluster(address: str, most: int | None = None) -> Generator[RayExecutor]:
    """Connect to a cluster while the block runs; a connection that is there already is used.

    Args:
        address: `HOST:PORT` of the cluster's head as `ray start` prints it, or `auto`.
        most: Runs at the same time; None for as many as there are CPUs.

    Raises:
        ConfigurationError: No cluster answers at the address.
        MissingExtraError: Ray is not installed.
    """
    with needs_extra("ray", "ray"):
        import ray
    connected = ray.is_initialized()
    if not connected:
        try:
            ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False)
        except (ConnectionError, ValueError, RuntimeError, TimeoutError) as error:
            reason = str(error).strip().splitlines()
            raise ConfigurationError(
                f"No Ray cluster could be reached at {address!r} ({reason[0] if reason else ''}). "
                "Start one with `ray start --head`, and give the address that it prints, or "
                "`auto` on one of its machines."
            ) from error
    try:
        yield RayExecutor(most)
    finally:
        if not connected:
            ray.shutdown()


def _call(function: Callable[[Any], Any], item: Any, folder: str) -> Any:
    """Run one item in a worker, in the caller's folder if the node has it: paths are as there."""
    use_one_thread()
    if os.path.isdir(folder):
        os.chdir(folder)
    return function(item)
