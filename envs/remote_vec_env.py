"""A vector environment in a process of its own, which may crash without ending the training.

The process is one of this machine, or what else answers alike.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from typing import Any, Protocol

import numpy as np
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvStepReturn

from rlbatch.envs.processes import start_process
from rlbatch.envs.threads import use_one_thread
from rlbatch.errors import RlbatchError

_MOST_CRASHES = 10

Make = Callable[[int], VecEnv]
"""Makes the environment from the number of processes that died before, which is to change its
seed."""


class Server(Protocol):
    """A process that holds an environment: its end of a pipe, and what ends it."""

    def send(self, message: tuple[str, Any]) -> None:
        """Send a command with its arguments."""
        ...

    def receive(self) -> tuple[str, Any]:
        """Wait for the kind of the answer, `result` or `error`, and the answer.

        Raises:
            EOFError: The process is gone.
        """
        ...

    def close(self) -> None:
        """End the process."""
        ...


class ProcessServer:
    """A process of this machine."""

    def __init__(self, make: Make, crashes: int) -> None:
        """Start it."""
        self._pipe, self._process = start_process(partial(_serve, make, crashes), daemon=True)

    def send(self, message: tuple[str, Any]) -> None:
        """See `Server.send`."""
        try:
            self._pipe.send(message)
        except (BrokenPipeError, OSError):
            return  # noticed when the answer is missing

    def receive(self) -> tuple[str, Any]:
        """See `Server.receive`."""
        try:
            return self._pipe.recv()
        except ConnectionError as error:
            raise EOFError from error

    def close(self) -> None:
        """See `Server.close`."""
        if self._process.is_alive():
            try:
                self._pipe.send(("close", None))
            except (BrokenPipeError, OSError):
                self._process.terminate()
        self._process.join()
        self._pipe.close()


class RemoteVecEnv(VecEnv):
    """Runs a vector environment elsewhere; several of them advance at the same time.

    When the process dies, another takes its place, and all its episodes end where they were, as
    truncated ones without a result.
    """

    def __init__(self, make: Make, start: Callable[[Make, int], Server] = ProcessServer) -> None:
        """Start the process.

        Args:
            make: Makes the environment. It must be picklable.
            start: Starts a process, from `make` and its argument.
        """
        self._make, self._begin, self._crashes = make, start, 0
        self._server = start(make, 0)
        super().__init__(*self._call("spaces"))
        self._last = np.zeros((self.num_envs, *(self.observation_space.shape or ())), np.float32)

    def reset(self) -> np.ndarray:
        """Begin every episode."""
        self._last = self._call("reset")
        return self._last.copy()

    def step_async(self, actions: np.ndarray) -> None:
        """Send the decisions; the process begins at once."""
        self._server.send(("step", actions))

    def step_wait(self) -> VecEnvStepReturn:
        """Wait for the results."""
        try:
            result = self._receive()
        except EOFError:
            return self._begin_anew()
        self._last = result[0].copy()
        return result

    def _begin_anew(self) -> VecEnvStepReturn:
        self._crashes += 1
        if self._crashes > _MOST_CRASHES:
            raise RlbatchError(
                f"A process with training runs died {self._crashes} times. Look at what it printed;"
                " fewer runs side by side need less memory."
            )
        warnings.warn(
            f"rlbatch: a process with {self.num_envs} runs died; another takes its place.",
            RuntimeWarning,
            stacklevel=2,
        )
        self._server.close()
        self._server = self._begin(self._make, self._crashes)
        before, self._last = self._last, self._call("reset")
        infos: list[dict[str, Any]] = [
            {"terminal_observation": row, "TimeLimit.truncated": True} for row in before
        ]
        ended = np.ones(self.num_envs, dtype=bool)
        return self._last.copy(), np.zeros(self.num_envs, np.float32), ended, infos

    def close(self) -> None:
        """End the process."""
        self._server.close()

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """Attribute of each environment."""
        return self._call("get_attr", (attr_name, indices))

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        """Set an attribute of each environment."""
        self._call("set_attr", (attr_name, value, indices))

    def env_method(
        self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any
    ) -> list[Any]:
        """Call a method of each environment."""
        return self._call("env_method", (method_name, args, indices, kwargs))

    def env_is_wrapped(self, wrapper_class: type, indices: Any = None) -> list[bool]:
        """No environment is wrapped."""
        return [False for _ in self._get_indices(indices)]

    def _call(self, command: str, arguments: Any = None) -> Any:
        self._server.send((command, arguments))
        return self._receive()

    def _receive(self) -> Any:
        kind, value = self._server.receive()
        if kind == "error":
            raise RlbatchError(f"A process with training runs failed: {value}")
        return value


class Served:
    """The environment in its process, which is made at the first command."""

    def __init__(self, make: Make, crashes: int) -> None:
        """Make nothing yet."""
        self._make, self._crashes = make, crashes
        self._env: VecEnv | None = None

    def answer(self, command: str, arguments: Any) -> Any:
        """Return what a command gives."""
        if self._env is None:
            use_one_thread()
            self._env = self._make(self._crashes)
        return _answer(self._env, command, arguments)


def _serve(make: Make, crashes: int, pipe: Connection) -> None:
    served = Served(make, crashes)
    try:
        while True:
            command, arguments = pipe.recv()
            if command == "close":
                return
            pipe.send(("result", served.answer(command, arguments)))
    except (EOFError, KeyboardInterrupt):
        return  # the training is over
    except Exception as error:
        pipe.send(("error", f"{type(error).__name__}: {error}"))
        raise


def _answer(env: VecEnv, command: str, arguments: Any) -> Any:
    if command == "spaces":
        return env.num_envs, env.observation_space, env.action_space
    if command == "reset":
        return env.reset()
    if command == "step":
        return env.step(arguments)
    if command == "env_method":
        name, positional, indices, keywords = arguments
        return env.env_method(name, *positional, indices=indices, **keywords)
    return getattr(env, command)(*arguments)
