"""What autograd tells of a node of its graph."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from torch import Tensor

_NODES = 48  # that a walk visits at most: it is made in the first steps, of any graph


def number_beside(node: Any, *names: str) -> float:
    """Return the number that an operation had beside the loss; 1 where it is no single one."""
    for name in names:
        saved = getattr(node, name, None)
        if isinstance(saved, (int, float)):
            return float(saved)
        if isinstance(saved, Tensor) and saved.numel() == 1:
            return float(saved.detach())
    return 1.0


def name_of(node: Any) -> str:
    """Return what autograd calls an operation."""
    return node.name().split("Backward")[0]


def children_of(node: Any) -> list[Any]:
    """Return the nodes that it was computed from, as far as they have gradients."""
    return [child for child, _ in node.next_functions if child is not None]


def shape_of(node: Any) -> tuple[int, ...]:
    """Return the shape of what an operation gave; empty where autograd does not tell."""
    told = getattr(node, "_input_metadata", None)
    return tuple(told[0].shape) if told else ()


def walk(node: Any, behind: Callable[[Any], Iterable[Any]]) -> Iterator[Any]:
    """Yield a node and those behind it, the nearest first, as far as `behind` leads."""
    ahead = [node]
    for _ in range(_NODES):
        if not ahead:
            return
        node = ahead.pop(0)
        yield node
        ahead += behind(node)
