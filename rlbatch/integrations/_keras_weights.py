"""A copy of a Keras model's weights and of its optimizer's state, that can be put back."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any

import keras
import numpy as np
import torch

from rlbatch.control.user_copies import UserCopies
from rlbatch.integrations._keras_training import KerasRate

ops: Any = keras.ops  # its annotations name the tensors of every backend at once


class KerasWeights:
    """A copy of what is trained, of statistics and optimizer state.

    Frozen weights are no part of it: nothing changes them. The learning rate is the user's.

    Attributes:
        taken: Whether there is a copy.
        also: What else is copied and put back.
    """

    def __init__(self, model: Any, rate: KerasRate) -> None:
        """Keep references; nothing is copied before `take`."""
        self._model, self._rate = model, rate
        self._copies: list[tuple[Any, Any]] = []
        self.also = UserCopies()
        self.taken = False

    def begin(self) -> None:
        """Every variable is copied: none has to be watched."""

    def take(self) -> None:
        """Copy the present values."""
        self._copies = [(v, ops.copy(v)) for v in self._variables()]
        self.also.take()
        self.taken = True

    def extend(self) -> None:
        """Nothing begins to be trained within `fit`: that takes a new `compile`."""

    def restore(self) -> None:
        """Put the values of the last `take` back."""
        iterations = self._rate.iterations
        for variable, value in self._copies:
            variable.assign(value)
        self._rate.put_back(iterations)
        self.also.restore()

    def exchange(self) -> None:
        """Put the values of the last `take` back, and keep those of now as the copy."""
        also, iterations = self.also.now(), self._rate.iterations
        for place, (variable, value) in enumerate(self._copies):
            self._copies[place] = variable, ops.copy(variable)
            variable.assign(value)
        self._rate.put_back(iterations)
        self.also.restore()
        self.also.saved = also

    def state_dict(self) -> dict[str, Any]:
        """Return the copy as torch's tensors, whatever the backend is."""
        arrays = (ops.convert_to_numpy(value) for _, value in self._copies)
        tensors = [_as_torch(array) for array in arrays]
        return {"tensors": tensors, "also": copy.deepcopy(self.also.saved)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take a copy out of a backup; one of other shapes is left alone."""
        variables, saved = self._variables(), state["tensors"]
        self.taken = [tuple(v.shape) for v in variables] == [tuple(t.shape) for t in saved]
        if self.taken:
            arrays = (tensor.numpy() for tensor in saved)
            self._copies = list(zip(variables, arrays, strict=True))
            self.also.saved = list(state.get("also", []))

    def changing(self) -> None:
        """Every variable is copied: there is nothing to know."""

    def load_changing(self, slots: list[Any] | None) -> None:
        """Take what `changing` returned."""

    def _variables(self) -> list[Any]:
        state = [v for v in self._model.optimizer.variables if v is not self._rate.variable]
        fixed = frozen(self._model)
        return [*(v for v in self._model.weights if id(v) not in fixed), *state]


def frozen(model: Any) -> set[int]:
    """Return the variables that layers made to be trained and that are not, by identity.

    Statistics are not among them: those were never meant to be trained.
    """
    layers = model._flatten_layers()
    made: Iterable[Any] = (v for layer in layers for v in layer._trainable_variables)
    return {id(variable) for variable in made if not variable.trainable}


def _as_torch(array: Any) -> torch.Tensor:
    known = array.dtype.kind in "biu" or array.dtype in (np.float16, np.float32, np.float64)
    return torch.tensor(array if known else array.astype(np.float32))  # such as bfloat16
