"""Reads off autograd's graph how a loss goes over the samples of a batch.

From the loss down to where it has a value for each sample. In between it has to be linear, and the
step across a mean. What autograd does not tell (a compiled model, own kernels) stays unseen.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor

from rlbatch.control.graph_nodes import children_of, name_of, number_beside, shape_of, walk
from rlbatch.control.graph_pairs import has_classes_of_samples, is_paired, sums_over_samples

_NODES = 48  # of the graph, behind the loss
_MEAN, _SUM = 1, 2  # reductions, as autograd notes them
_TOLERANCE = 1e-6  # relative
# Linear in what stands behind them. Others end the search, but for those that are known to be not.
_LINEAR = (
    *("Add", "Sub", "Rsub", "Neg", "ToCopy", "Squeeze", "Unsqueeze", "View", "UnsafeView"),
    *("ReshapeAlias", "Alias", "Stack", "Cat", "Select", "Slice", "Index", "Expand", "Permute"),
    *("T", "Transpose", "Clone", "Unbind", "Mean", "Sum", "Trace", "MaskedSelect", "Diagonal"),
)
_CURVED = (
    *("Sqrt", "Rsqrt", "Log", "Log1P", "Log2", "Log10", "Exp", "Expm1", "Pow", "Reciprocal"),
    *("Abs", "Sigmoid", "Tanh", "Softplus", "LogSigmoid", "Relu", "Clamp", "ClampMin", "ClampMax"),
    *("Maximum", "Minimum", "Acos", "Atan2"),
)
_GATHERING = ("Stack", "Cat")  # of values that are not the samples'
_BY_SAMPLE = (  # where each sample's value comes of its own
    *("Mul", "Div", "LogSoftmax", "Softmax", "NllLoss", "Gather", "Gelu", "Silu", "LeakyRelu"),
)
_ORDERED = (  # reductions that are no sums
    *("Max", "Min", "Amax", "Amin", "Median", "Nanmedian", "Topk", "Kthvalue", "Logsumexp", "Var"),
    *("Std", "VarMean", "StdMean", "Prod", "Norm", "LinalgVectorNorm"),
)


class Mean(NamedTuple):
    """What a part's loss was divided by.

    Attributes:
        operation: Autograd's name.
        divisor: A sample.
    """

    operation: str
    divisor: float


@dataclass
class Reading:
    """What a loss was found to be.

    Attributes:
        means: What it was divided by.
        problem: Why it is no mean over samples; None where nothing says so.
        compares: It may compare each sample with the others, which a second part makes sure.
        totals: What it was divided by in all, numbers beside the means and sums included.
        sums: Those of `totals` that are of sums.
    """

    means: list[Mean] = field(default_factory=list[Mean])
    totals: list[float] = field(default_factory=list[float])
    sums: list[float] = field(default_factory=list[float])
    problem: str | None = None
    compares: bool = False


class _Place(NamedTuple):
    """A node on the way, with what stands between it and the loss."""

    node: Any
    curve: str | None = None  # an operation that is not linear
    divided: float = 1.0  # by numbers
    times: float = 1.0  # numbers

    @property
    def factor(self) -> float:
        return self.divided / self.times if self.times else math.inf


def read(root: Any, samples: int, counts: float | None = None) -> Reading:
    """Return what autograd tells of a loss.

    Args:
        root: Node of the loss.
        samples: Of the batch.
        counts: What it is to be a mean over; None for the samples.
    """
    counts = samples if counts is None else counts
    reading, ahead = Reading(), [_Place(root)]
    for _ in range(_NODES):
        if not ahead:
            break
        place = ahead.pop(0)
        if place.node is None:
            continue
        if _reduces(place.node, samples):
            _read_reduction(reading, place, samples, counts)
        elif place.curve is not None and sums_over_samples(place.node, samples):
            reading.problem = f"the loss is a function ({place.curve}) of a sum over samples"
        else:
            ahead += _behind(place, samples)
    return reading


def _read_reduction(reading: Reading, place: _Place, samples: int, counts: float) -> None:
    node, name = place.node, name_of(place.node)
    known = getattr(node, "_saved_reduction", None)
    if name in _ORDERED:
        reading.problem = f"the loss is no mean over samples ({name})"
    elif place.curve is not None:
        reading.problem = f"the loss is a function ({place.curve}) of a mean over samples"
    elif known == _SUM or name == "Sum":
        _read_sum(reading, place, counts)
    else:
        divisor = _divisor(node, known)
        if divisor is not None:
            reading.means.append(Mean(name, divisor / counts))
            reading.totals.append(divisor * place.factor)
    if any(is_paired(child, samples) for child in children_of(node)):
        reading.problem = "the loss compares each sample with the others of its batch"
    elif any(_reads_batch(child, samples) for child in children_of(node)):
        reading.problem = "the loss of each sample depends on means over the others of its batch"
    reading.compares = reading.compares or has_classes_of_samples(node, samples)


def _read_sum(reading: Reading, place: _Place, counts: float) -> None:
    """Take a sum that is a mean if it was divided by the samples, or by so many of each."""
    reading.sums.append(place.factor)
    for divisor in (place.divided, place.factor):
        if _is_multiple(divisor, counts):
            reading.means.append(Mean("Sum", divisor / counts))
            return
    said = "and a mean is expected"
    if place.divided != 1.0:
        said = f"divided by {place.divided:.6g} where there are {counts:.6g} of them"
    reading.problem = f"the loss is a sum over samples, {said}"


def _behind(place: _Place, samples: int) -> Iterator[_Place]:
    node, name = place.node, name_of(place.node)
    children = children_of(node)
    if name in _CURVED:
        yield from (place._replace(node=child, curve=name) for child in children)
    elif name in _LINEAR:
        yield from (place._replace(node=child) for child in children)
    elif name == "Mul" and len(children) == 1:
        factor = number_beside(node, "_saved_other", "_saved_self")
        if factor != 0.0:  # else it adds nothing, and is there for its parameters' sake
            yield place._replace(node=children[0], times=place.times * factor)
    elif name == "Div" and len(children) == 1:
        if node.next_functions[0][0] is None:  # a number by something
            yield place._replace(node=children[0], curve=name)
        else:
            factor = number_beside(node, "_saved_other")
            yield place._replace(node=children[0], divided=place.divided * factor)
    elif name in ("Mul", "Div"):
        both = all(_has_samples(child, samples) for child in children)
        curves = both or (name == "Div" and _has_samples(children[1], samples))
        curve = name if curves else place.curve
        yield from (place._replace(node=child, curve=curve) for child in children)


def _reduces(node: Any, samples: int) -> bool:
    """Whether a value for each sample goes in and none comes out."""
    if getattr(node, "_saved_reduction", None) in (_MEAN, _SUM):
        return True
    if name_of(node) not in ("Mean", "Sum", *_ORDERED):
        return False
    inputs = [child for child in children_of(node) if not _is_of_parameter(child)]
    if any(_is_by_sample(child, samples) for child in inputs):
        return not _is_by_sample(node, samples)
    return not shape_of(node) and any(_is_picked(child) for child in inputs)


def _is_by_sample(node: Any, samples: int) -> bool:
    """Whether a value's first dimension may be the samples'."""
    shape = shape_of(node)
    return bool(shape) and shape[0] % samples == 0


def without_division(root: Any, divisor: float) -> Any:
    """Return the node that a framework has divided by a number, or the node itself."""
    if root is None or name_of(root) != "Div" or number_beside(root, "_saved_other") != divisor:
        return root
    return children_of(root)[0]


def _has_samples(node: Any, samples: int) -> bool:
    """Whether a reduction over samples stands behind a node."""

    def behind(node: Any) -> list[Any]:
        return children_of(node) if name_of(node) in (*_LINEAR, *_CURVED, "Mul", "Div") else []

    return any(_reduces(found, samples) for found in walk(node, behind))


def _reads_batch(node: Any, samples: int) -> bool:
    """Whether each sample's value was computed with a reduction over all of them."""

    def behind(node: Any) -> list[Any]:
        if name_of(node) in _GATHERING or not _is_by_sample(node, samples):
            return []
        known = name_of(node) in (*_LINEAR, *_CURVED, *_BY_SAMPLE)
        return children_of(node) if known else []

    return any(_reduces(child, samples) for found in walk(node, behind) for child in behind(found))


def _is_of_parameter(node: Any) -> bool:
    """Whether a value is computed from a parameter alone, element by element."""
    shape = shape_of(node)
    for _ in range(8):
        if name_of(node) == "torch::autograd::AccumulateGrad":
            return True
        children = children_of(node)
        if not children or any(shape_of(child) != shape for child in children):
            return False
        node = children[0]
    return False


def _is_picked(node: Any) -> bool:
    """Whether values were picked out of others, as those that a mask leaves."""
    for _ in range(8):
        name = name_of(node)
        if name in ("Index", "MaskedSelect", "IndexSelect", "Take", "Gather"):
            return True
        children = children_of(node)
        if name not in (*_LINEAR, *_CURVED, "Mul", "Div") or not children:
            return False
        node = children[0]
    return False


def _divisor(node: Any, reduction: int | None) -> float | None:
    name = name_of(node)
    if name.startswith("NllLoss"):
        return float(node._saved_total_weight)
    if reduction == _MEAN:
        saved = getattr(node, "_saved_self", None)
        return float(saved.numel()) if isinstance(saved, Tensor) else None
    return float(math.prod(shape_of(children_of(node)[0]))) if name == "Mean" else None


def _is_multiple(divisor: float, counts: float) -> bool:
    times = divisor / counts
    whole = round(times) if math.isfinite(times) else math.nan
    return times >= 1.0 - _TOLERANCE and abs(times - whole) <= _TOLERANCE * times
