"""Where autograd's graph of a loss goes over pairs of samples, or puts samples together."""

from __future__ import annotations

from typing import Any

import torch

from rlbatch.control.graph_nodes import children_of, name_of, shape_of, walk

_PAIRS = ("Mm", "Bmm", "Cdist", "EuclideanDist")
_FEWEST = 4  # samples of a part whose labels or dimensions tell something


def is_paired(node: Any, samples: int) -> bool:
    """Whether there is a value for each pair of samples behind a node."""

    def behind(node: Any) -> list[Any]:
        if _is_square(node, samples):
            return [] if _is_product(node) else children_of(node)
        if name_of(node) in ("Index", "MaskedSelect", "Select", "Diagonal", "Gather"):
            return [child for child in children_of(node) if _is_square(child, samples)]
        return []

    return any(
        _is_square(found, samples)
        and _is_product(found)
        and not any(map(_is_weight, children_of(found)))
        for found in walk(node, behind)
    )


def _is_product(node: Any) -> bool:
    return name_of(node) in _PAIRS and len(children_of(node)) == 2


def _is_square(node: Any, samples: int) -> bool:
    shape = shape_of(node)
    return len(shape) >= 2 and shape[-2] == shape[-1] and shape[-1] % samples == 0


def _is_weight(node: Any) -> bool:
    while name_of(node) in ("T", "Transpose", "Permute"):
        node = children_of(node)[0]
    return name_of(node) == "torch::autograd::AccumulateGrad"


def has_classes_of_samples(node: Any, samples: int) -> bool:
    """Whether it is a cross entropy whose classes are the samples themselves, in their order."""
    target = getattr(node, "_saved_target", None)
    if not name_of(node).startswith("NllLoss") or target is None:
        return False
    classes = node._saved_self.shape[-1]
    if classes == samples >= _FEWEST and target.shape == (samples,):
        return bool((target.detach().cpu() == torch.arange(samples)).all())
    return False


def sums_over_samples(node: Any, samples: int) -> bool:
    """Whether a product of matrices sums over the samples, as a correlation of features does."""
    out = shape_of(node)
    if name_of(node) not in ("Mm", "Bmm") or samples < _FEWEST or len(out) < 2:
        return False
    if any(not size % samples for size in out[-2:]):  # it has samples still, or may have
        return False
    factors = [shape_of(child) for child in children_of(node) if not _is_weight(child)]
    summed = [s[-2] if s[-1] == out[-1] else s[-1] for s in factors if len(s) == len(out)]
    return bool(summed) and not any(size % samples for size in summed)
