"""The actor of a live run on a cluster, in a module that imports nothing heavy."""

from __future__ import annotations

import pickle
from typing import Any

from rlbatch.envs.processes import keep_tensorflow_out


class Actor:
    """Holds an environment and answers commands to it.

    What it holds is unpickled only here, where TensorFlow is kept out of it before.
    """

    def __init__(self, pickled: bytes) -> None:
        """Make the environment.

        Args:
            pickled: A function of no arguments that returns a `Served`, by cloudpickle.
        """
        keep_tensorflow_out()
        self._served: Any = pickle.loads(pickled)()

    def answer(self, command: str, arguments: Any) -> tuple[str, Any]:
        """Return the kind of the answer, `result` or `error`, and the answer."""
        try:
            return "result", self._served.answer(command, arguments)
        except Exception as error:
            return "error", f"{type(error).__name__}: {error}"
