"""A policy with a memory: a network behind a long short-term memory, run with NumPy alone.

The memory is the policy's state. It begins at zero with each run, goes on from decision to
decision, and lies in the controller's checkpoint with the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rlbatch.errors import ConfigurationError
from rlbatch.observation import OBSERVATION_SIZE
from rlbatch.policy import tools
from rlbatch.policy.base import Decision, Observation
from rlbatch.policy.card import PolicyCard, Trained
from rlbatch.policy.network import Float32, Network, softmax
from rlbatch.signals.record import Signals

_GATES = 4
_LARGEST_SUM = 1e30  # float32 ends at 3e38


class MemoryLayer(NamedTuple):
    """One layer of memory cells, its gates in torch's order: input, forget, cell, output.

    Attributes:
        inputs: Weights of the inputs, shape (4 units, inputs).
        recurrent: Weights of the layer's own outputs before, shape (4 units, units).
        bias: Shape (4 units,).
    """

    inputs: Float32
    recurrent: Float32
    bias: Float32

    @property
    def units(self) -> int:
        """How many cells there are."""
        return self.recurrent.shape[1]

    def _gate(self, number: int) -> slice:
        return slice(number * self.units, (number + 1) * self.units)

    def advance(self, values: Float32, output: Float32, cells: Float32) -> tuple[Float32, Float32]:
        """Return the next outputs and cells, each of shape (..., units).

        By Hochreiter and Schmidhuber 1997, "Long Short-Term Memory", with the forget gate of Gers
        et al. 2000, as torch.nn.LSTM.

        Args:
            values: Shape (..., inputs).
            output: Shape (..., units).
            cells: Likewise.
        """
        sums = values @ self.inputs.T + output @ self.recurrent.T + self.bias
        enter, keep, new, leave = (sums[..., self._gate(number)] for number in range(_GATES))
        cells = _sigmoid(keep) * cells + _sigmoid(enter) * np.tanh(new)
        return _sigmoid(leave) * np.tanh(cells), cells


@dataclass(frozen=True, eq=False)
class RecurrentPolicy(Trained):
    """The most probable change of the batch size, by a network on what a memory says.

    Attributes:
        memory: Layers, the first of which takes the observation.
        network: Of which the `policy` net takes what the last layer gives.
        action_grid: Change of log2(batch size) of each action, ascending, 0 among them.
        card: How the policy was made.
    """

    memory: tuple[MemoryLayer, ...]
    network: Network
    action_grid: tuple[float, ...]
    card: PolicyCard = field(default_factory=PolicyCard)

    needs_gradient_noise = True

    def __post_init__(self) -> None:
        """Refuse layers that do not fit, and numbers out of range."""
        grid = tools.checked_grid("RecurrentPolicy", self.action_grid)
        object.__setattr__(self, "action_grid", grid)
        object.__setattr__(self, "memory", tuple(_checked(layer) for layer in self.memory))
        sizes = [OBSERVATION_SIZE, *(layer.units for layer in self.memory)]
        wanted = [layer.inputs.shape[1] for layer in self.memory]
        ends = self.network.sizes("policy")
        if not self.memory or wanted != sizes[:-1] or (ends[0], ends[-1]) != (sizes[-1], len(grid)):
            raise ConfigurationError(
                f"RecurrentPolicy needs a memory on {OBSERVATION_SIZE} features, layer on layer, "
                f"and a network from there to {len(grid)} actions; got memory layers of {wanted} "
                f"inputs and {sizes[1:]} units, and a network of sizes {ends}."
            )

    def initial_state(self, shape: tuple[int, ...] = ()) -> tuple[tuple[Float32, Float32], ...]:
        """Return outputs and cells of each layer, zeros of shape (*shape, units)."""
        return tuple(
            (
                np.zeros((*shape, layer.units), np.float32),
                np.zeros((*shape, layer.units), np.float32),
            )
            for layer in self.memory
        )

    def decide(
        self, observation: Observation, signals: Signals, state: Any
    ) -> tuple[Decision, Any]:
        """Return the most probable change, with all probabilities.

        An observation that is not finite gets "stay" with probability one, and the memory 0 in its
        place.

        Args:
            observation: Shape (..., OBSERVATION_SIZE), float32.
            signals: Not read.
            state: From `initial_state` or the previous call.
        """
        given = tools.checked_observation("RecurrentPolicy", observation)
        logits, after = self.advance(np.nan_to_num(given, nan=0.0, posinf=0.0, neginf=0.0), state)
        grid = np.asarray(self.action_grid)
        legal = np.isfinite(given).all(axis=-1, keepdims=True) | (grid == 0.0)
        probabilities = softmax(np.where(legal, logits, np.float32(-np.inf)))
        index = probabilities.argmax(axis=-1)
        change = tools.numeric(grid[index])
        reasons: tuple[str, ...] = ()
        if isinstance(change, float):
            reasons = (f"learned: {tools.describe(change)} (p={probabilities[index]:.2f})",)
        return Decision(change, probabilities, None, reasons), after

    def advance(
        self, values: Float32, state: Sequence[tuple[Float32, Float32]]
    ) -> tuple[Float32, tuple[tuple[Float32, Float32], ...]]:
        """Return the log odds of the actions, shape (..., actions), and the next state.

        Args:
            values: Finite observations, shape (..., OBSERVATION_SIZE).
            state: As `initial_state`.
        """
        after: list[tuple[Float32, Float32]] = []
        for layer, before in zip(self.memory, state, strict=True):
            after.append(layer.advance(values, *before))
            values = after[-1][0]
        return self.network.forward("policy", values), tuple(after)


def _sigmoid(values: NDArray[Any]) -> Float32:
    return np.float32(0.5) + np.float32(0.5) * np.tanh(np.float32(0.5) * values)


def _checked(layer: MemoryLayer) -> MemoryLayer:
    """Return a layer in single precision, its shapes and the size of its sums checked."""
    inputs, recurrent, bias = (np.array(part, dtype=np.float32) for part in layer)
    rows = bias.size
    shapes = inputs.ndim == recurrent.ndim == 2 and inputs.shape[0] == recurrent.shape[0] == rows
    if not shapes or bias.ndim != 1 or not rows or rows != _GATES * recurrent.shape[1]:
        raise ConfigurationError(
            "A memory layer needs weights of shape (4 units, inputs) and (4 units, units) and a "
            f"bias of shape (4 units,); got {inputs.shape}, {recurrent.shape} and {bias.shape}."
        )
    sums = np.abs(inputs).sum(axis=1, dtype=np.float64)
    sums += np.abs(recurrent).sum(axis=1, dtype=np.float64) + np.abs(bias)
    if not sums.max() <= _LARGEST_SUM:
        raise ConfigurationError(
            "A memory layer has weights that are not finite, or so large that its sums are not: "
            "its training diverged. Use an earlier checkpoint."
        )
    for part in (inputs, recurrent, bias):
        part.setflags(write=False)
    return MemoryLayer(inputs, recurrent, bias)
