"""Live runs on a Ray cluster: vector environments in actors, from which a training here learns."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import partial
from typing import Any

from rlbatch.agents.ray_actor import Actor
from rlbatch.envs.remote_vec_env import Make, ProcessServer, Served, Server

Start = Callable[[Make, int], Server]


@contextmanager
def open_servers(cluster: str | None) -> Generator[tuple[Start, int]]:
    """Run a block with what starts servers of environments, and how many can work at a time.

    Args:
        cluster: Address of a Ray cluster, as for `open_executor`; None: processes of this machine.

    Raises:
        ConfigurationError: There is no cluster at that address.
        MissingExtraError: Ray is not installed.
    """
    if cluster is None:
        yield ProcessServer, os.cpu_count() or 1
        return
    from rlbatch.agents.ray_executor import open_cluster

    with open_cluster(cluster) as executor:
        yield ActorServer, executor.width


class ActorServer:
    """An environment in an actor, on any node.

    A lost actor is not started again by Ray, which could not say what has become of its runs;
    `RemoteVecEnv` begins them anew.
    """

    def __init__(self, make: Make, crashes: int) -> None:
        """Start it; it takes no CPU from tasks, which run while it waits."""
        import cloudpickle
        import ray

        self._ray: Any = ray
        options = ray.remote(num_cpus=0, max_restarts=0, scheduling_strategy="SPREAD")
        # Pickled here, not by Ray, so that nothing is imported there before `Actor` begins.
        self._actor: Any = options(Actor).remote(cloudpickle.dumps(partial(Served, make, crashes)))
        self._answer: Any = None

    def send(self, message: tuple[str, Any]) -> None:
        """See `Server.send`."""
        self._answer = self._actor.answer.remote(*message)

    def receive(self) -> tuple[str, Any]:
        """See `Server.receive`."""
        try:
            return self._ray.get(self._answer)
        except self._ray.exceptions.RayError as error:
            raise EOFError from error

    def close(self) -> None:
        """See `Server.close`."""
        self._ray.kill(self._actor)
