"""What goes into the layers of a Keras model and what comes back to them, in measured steps."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import keras
import torch

layers: Any = keras.layers  # its annotations name the tensors of every backend at once

_ABSENT = object()


@dataclass
class Call:
    """One call of a layer.

    Attributes:
        inputs: What went in.
        training: The argument of that name.
        delta: Gradient of what is seen of the call; None while none came back.
    """

    inputs: Any
    training: Any
    delta: Any = None


class Tap:
    """Sees the calls of one layer.

    What is seen of a call is its output or, of a layer with an activation, what goes into that.

    Attributes:
        layer: Whose calls.
        usable: False once it was called in a way that cannot be followed.
    """

    def __init__(self, layer: Any, graph: Any) -> None:
        """See the calls that are made in a graph of TensorFlow; None: in none."""
        self.layer, self.usable = layer, True
        self._calls: list[Call] = []
        self._graph = graph

    @property
    def calls(self) -> list[Call]:
        """Those whose gradient has come back."""
        return [call for call in self._calls if call.delta is not None]

    def begin(self, args: Sequence[Any], kwargs: dict[str, Any]) -> bool:
        """A call begins; returns whether it can be followed."""
        inputs = args[0] if args else next(iter(kwargs.values()), None)
        known = keras.ops.is_tensor(inputs) and kwargs.get("mask") is None
        if torch.compiler.is_compiling() or not known or _graph() is not self._graph:
            self.usable = False
        elif self.usable:
            inputs = inputs.detach() if isinstance(inputs, torch.Tensor) else inputs
            self._calls.append(Call(inputs, kwargs.get("training")))
        return self.usable

    def see(self, value: Any) -> Any:
        """Return a tensor of the latest call whose gradient will be noted."""
        call = self._calls[-1]
        if keras.backend.backend() == "torch":
            if value.requires_grad:  # else it leaves no trace: it has no part in the gradient
                value.register_hook(lambda delta: self._note(call, delta.detach()))
            return value
        import tensorflow as tf

        shape = value.shape

        @tf.custom_gradient
        def through(value: Any) -> tuple[Any, Callable[[Any], Any]]:
            def back(delta: Any) -> Any:
                kept = tf.identity(tf.convert_to_tensor(delta))
                kept.set_shape(shape)  # which gradients seldom know
                self._note(call, kept)
                return delta

            return tf.identity(value), back

        return through(value)

    def _note(self, call: Call, delta: Any) -> None:
        if _graph() is not self._graph:
            self.usable = False
        elif self.usable:
            call.delta = delta if call.delta is None else call.delta + delta


@contextmanager
def watched(kept: Sequence[Any]) -> Generator[list[Tap]]:
    """See the calls of these layers within the block. Nothing of their values is changed."""
    graph = _graph()
    with ExitStack() as stack:
        yield [stack.enter_context(_watched(Tap(layer, graph))) for layer in kept]


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Generator[None]:
    """Put something in front of an attribute of one object, past its bookkeeping of attributes."""
    before = vars(owner).get(name, _ABSENT)
    object.__setattr__(owner, name, value)
    try:
        yield
    finally:
        if before is _ABSENT:
            object.__delattr__(owner, name)
        else:
            object.__setattr__(owner, name, before)


@contextmanager
def _watched(tap: Tap) -> Generator[Tap]:
    layer, original = tap.layer, tap.layer.call
    has_activation = hasattr(layer, "activation")
    inner = getattr(layer, "activation", None)
    follows = False

    def call(*args: Any, **kwargs: Any) -> Any:
        nonlocal follows
        follows = tap.begin(args, kwargs)
        output = original(*args, **kwargs)
        return tap.see(output) if follows and not has_activation else output

    def activation(value: Any) -> Any:
        value = tap.see(value) if follows else value
        return value if inner is None else inner(value)

    with ExitStack() as stack:
        stack.enter_context(replaced(layer, "call", call))
        if has_activation:
            stack.enter_context(replaced(layer, "activation", activation))
        yield tap


def _graph() -> Any:
    """Return the graph of TensorFlow that is being traced; None where there is none."""
    if keras.backend.backend() == "torch":
        return None
    import tensorflow as tf

    return None if tf.executing_eagerly() else tf.compat.v1.get_default_graph()
