"""Gradient noise from the one backward pass of a whole batch: nothing is divided or run again.

In a measured step, hooks on some layers give blocks of the samples' gradients
(`rlbatch.signals.sample_layers`). With c_i the contribution of sample i to the step's gradient and
x_i = n c_i, the gradient is the mean of the x_i whatever the loss is: a mean, a sum, weighted, over
tokens or with some left out. Their squared norms and that of the gradient, over the same elements,
are what `rlbatch.signals.noise_scale.estimate` needs, with a micro-batch of one sample.
"""

from __future__ import annotations

import traceback
from collections import Counter
from collections.abc import Generator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from random import Random
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from rlbatch.signals import foreach
from rlbatch.signals.metric import GradientMetric
from rlbatch.signals.sample_blocks import Block
from rlbatch.signals.sample_layers import LayerProbe, probe_of

MAX_LAYERS = 8
"""Layers that are watched in one step, drawn anew for each: what bounds the number of launches."""

_ELEMENTS = 4096  # of a sample's gradient in all layers together, while memory allows
_FEWEST = 256
_NUMBERS = 1 << 22  # of all samples' gradients together: 16 MiB

TOLERANCE = 1e-2
"""By how much of its squared norm a parameter's gradient may differ from the sum of what was seen.

Rounding stays far below. Above it the parameter is used in some way that the hooks do not see, and
counts for nothing.
"""


class StepNoise(NamedTuple):
    """What a step showed, as scalars on the device, scaled to the norm of the whole gradient.

    Attributes:
        small_sqr: Mean squared norm of a sample's gradient, for `noise_scale.estimate`.
        big_sqr: Squared norm of the gradient.
        cosine: Expected cosine between the gradients of the batch's halves.
        variance: Of the estimate of tr(Sigma); negative where nothing could be measured.
    """

    small_sqr: Tensor
    big_sqr: Tensor
    cosine: Tensor
    variance: Tensor


class SampleGradients:
    """Hooks on the layers of a model, there in measured steps only.

    `begin` before the forward pass, `finish` behind the backward pass. Neither changes a gradient,
    draws a random number from torch or waits for a device.
    """

    def __init__(self, model: nn.Module) -> None:
        """Watch a model; its layers are looked through in the first measured step."""
        self._model = model
        self._layers: list[nn.Module] | None = None
        self._handles: list[RemovableHandle] = []
        self._probes: list[LayerProbe] = []
        self._samples = 0
        self._unscaling: Tensor | None = None

    @property
    def is_measuring(self) -> bool:
        """Whether hooks are in place."""
        return bool(self._handles)

    def begin(self, samples: int, seed: str, unscaling: Tensor | None = None) -> None:
        """Watch the coming passes.

        Args:
            samples: Of the step, all in one micro-batch.
            seed: Of the choice of layers and elements.
            unscaling: What gradients are to be multiplied by; None for 1.
        """
        self.abandon()
        if self._layers is None:
            self._layers = measurable_layers(self._model)
        rng = Random(seed)
        layers = [layer for layer in self._layers if _is_trained(layer)]
        if len(layers) > MAX_LAYERS:
            layers = rng.sample(layers, MAX_LAYERS)
        if samples < 2 or not layers:
            return
        elements = elements_of_each(samples, len(layers))
        self._samples, self._unscaling = samples, unscaling
        for layer in layers:
            kind = probe_of(layer)
            assert kind is not None  # noqa: S101 - `measurable_layers` kept no others
            probe = kind(layer, samples, elements, rng)
            probe.unscaling = unscaling
            self._probes.append(probe)
            hook: Any = _ForwardHook(probe)
            self._handles.append(layer.register_forward_hook(hook, with_kwargs=True))

    def finish(self, metric: GradientMetric | None) -> StepNoise | None:
        """Return what the passes since `begin` showed, or None if that is nothing.

        Args:
            metric: Of the optimizer before its step; None where it has none yet.
        """
        probes = [probe for probe in self._probes if probe.usable and probe.calls]
        self.abandon()
        if metric is None or not probes:
            return None
        try:
            blocks = [block for probe in probes for block in probe.blocks()]
            return step_noise(blocks, metric, self._unscaling, self._samples)
        except torch.OutOfMemoryError:  # the training itself has what it needs
            return None

    def abandon(self) -> None:
        """Watch nothing any more."""
        for handle in self._handles:
            handle.remove()
        for probe in self._probes:
            probe.usable = False  # a backward pass that is still to come is of no interest
        self._handles, self._probes = [], []


def elements_of_each(samples: int, layers: int) -> int:
    """Return about how many elements of a sample's gradient to take in each of so many layers."""
    return min(max(_NUMBERS // samples, _FEWEST), _ELEMENTS) // layers


def measurable_layers(model: nn.Module) -> list[nn.Module]:
    """Return the layers of which hooks see all that is done with their parameters.

    Left out are layers of other kinds, within compiled modules (whose hooks are not run), and those
    that share a parameter with another layer.
    """
    owners = Counter(id(p) for m in model.modules() for p in m.parameters(recurse=False))
    compiled = {id(inner) for m in model.modules() if _is_compiled(m) for inner in m.modules()}
    return [
        layer
        for layer in model.modules()
        if id(layer) not in compiled
        and probe_of(layer) is not None
        and all(owners[id(p)] == 1 for p in layer.parameters(recurse=False))
    ]


def step_noise(
    blocks: Sequence[Block], metric: GradientMetric, unscaling: Tensor | None, samples: int
) -> StepNoise | None:
    """Return the statistics of one step from blocks of its samples' gradients.

    Args:
        blocks: At most one a parameter.
        metric: The parameters that are measured, with their present gradients.
        unscaling: What these gradients are to be multiplied by, as those of the samples already
            are; None for 1.
        samples: Of the step, n.
    """
    places = {id(parameter): place for place, parameter in enumerate(metric.parameters)}
    blocks = [block for block in blocks if id(block.parameter) in places and _has_dense(block)]
    if not blocks:
        return None
    chosen = [places[id(block.parameter)] for block in blocks]
    gradients = metric.gradients(unscaling)
    of_block = [block.view(gradients[place]) for block, place in zip(blocks, chosen, strict=True)]
    totals, squares = _seen(blocks, chosen, metric)

    whole = foreach.squared_norms(gradients)
    big, seen = foreach.squared_norms(of_block), foreach.squared_norms(totals)
    missing = foreach.squared_norms(foreach.subtract(totals, of_block))
    valid = ~(missing > TOLERANCE * big)  # what is not finite stays in, to be noticed
    factors = torch.tensor([block.factor for block in blocks], dtype=big.dtype)
    weights = factors.to(big.device, non_blocking=True) * valid

    n = samples
    sample_sqr = weights @ squares.to(big.device, big.dtype)  # |c_i|^2
    trace = (n / (n - 1)) * (n * sample_sqr.sum() - weights @ seen)
    variance = float(n) ** 3 * sample_sqr.var()  # of the mean of |x_i|^2 = n^2 |c_i|^2
    big_sqr = weights @ big
    grad_sqr = big_sqr - trace / n
    cosine = grad_sqr / (grad_sqr + 2.0 * trace / n).clamp_min(1e-300)
    index = torch.tensor(chosen).to(big.device, non_blocking=True)
    covered = (whole[index] * valid).sum()
    scale = torch.where(covered > 0.0, whole.sum() / covered, 1.0)
    return StepNoise(
        scale * (big_sqr + trace * ((n - 1) / n)),
        scale * big_sqr,
        cosine,
        torch.where(valid.any(), scale.square() * variance, -1.0),
    )


def _seen(
    blocks: Sequence[Block], places: Sequence[int], metric: GradientMetric
) -> tuple[list[Tensor], Tensor]:
    """Return the sums over samples, and the samples' squared norms, shape (blocks, samples)."""
    totals = [block.total() for block in blocks]
    roots: Sequence[Tensor | None] = [None] * len(blocks)
    if metric.scales is not None:
        scales = metric.scales
        roots = found = [b.view(scales[place]) for b, place in zip(blocks, places, strict=True)]
        totals = foreach.multiply(totals, found)
    squares = [
        block.squares(None if root is None else root.square())
        for block, root in zip(blocks, roots, strict=True)
    ]
    device = squares[0].device
    return totals, torch.stack([square.to(device, torch.float32) for square in squares])


class _ForwardHook:
    """Lets a probe see a layer's calls: their inputs, and later the gradients of their outputs.

    A model that is copied or pickled within a measured step takes a hook along that sees nothing.
    """

    def __init__(self, probe: LayerProbe) -> None:
        self._probe = probe

    def __reduce__(self) -> tuple[Any, ...]:
        # Python's own, which does nothing: such a file can be read where there is no rlbatch.
        return getattr, (nullcontext(), "__exit__")

    def __call__(
        self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> None:
        del layer
        probe = self._probe
        if torch.compiler.is_compiling() or not probe.usable:
            return
        inputs = args[0] if args else kwargs.get("input")
        # What leaves no trace has no part in the gradient: a validation, the first of two passes
        # of a checkpointed layer.
        if not (isinstance(output, Tensor) and output.requires_grad):
            return
        kept = None
        with _careful(probe):
            kept = probe.keep(inputs.detach()) if isinstance(inputs, Tensor) else None
        if kept is None:
            probe.usable = False
        else:
            back: Any = partial(_add, probe, kept)
            cast("Any", output).register_hook(back)


def _add(probe: LayerProbe, kept: Tensor, delta: Tensor) -> None:
    if probe.usable:
        with _careful(probe):
            probe.add(kept, delta.detach())


@contextmanager
def _careful(probe: LayerProbe) -> Generator[None]:
    """Computes for a probe, which is of no use any more if there is no memory for it."""
    try:
        with torch.no_grad():
            yield
    except torch.OutOfMemoryError as error:
        probe.usable = False
        traceback.clear_frames(error.__traceback__)  # they hold what there is no memory for


def _is_trained(layer: nn.Module) -> bool:
    return any(p.requires_grad for p in layer.parameters(recurse=False))


def _is_compiled(module: nn.Module) -> bool:
    wrapped = type(module).__module__.startswith("torch._dynamo")
    return wrapped or getattr(module, "_compiled_call_impl", None) is not None


def _has_dense(block: Block) -> bool:
    gradient = block.parameter.grad
    return gradient is not None and not gradient.is_sparse
