"""Procedural pictures: shapes, textures and strokes, drawn with a fixed seed."""

from __future__ import annotations

import math

import torch
from torch import Tensor

SHAPES = 10


def shapes(count: int, side: int, noise: float, seed: int) -> tuple[Tensor, Tensor]:
    """Return pictures [N, 1, side, side] of one shape each, and its class [N].

    A shape has a random place, size, angle and contrast; beside it lies noise of this standard
    deviation, where the shape itself has a contrast of 0.5 to 1.
    """
    made = torch.Generator().manual_seed(seed)
    labels = torch.randint(SHAPES, (count,), generator=made)
    pictures = torch.empty(count, 1, side, side)
    for start in range(0, count, 5000):
        part = labels[start : start + 5000]
        x, y = _coordinates(len(part), side, made)
        inside = torch.empty(len(part), side, side)
        for label in range(SHAPES):
            chosen = part == label
            inside[chosen] = _shape(label, x[chosen], y[chosen])
        contrast = 0.5 + 0.5 * torch.rand(len(part), 1, 1, generator=made)
        drawn = inside * contrast + noise * torch.randn(inside.shape, generator=made)
        pictures[start : start + len(part), 0] = drawn
    return pictures, labels


def textures(count: int, side: int, classes: int, noise: float, seed: int) -> tuple[Tensor, Tensor]:
    """Return coloured pictures [N, 3, side, side] of gratings, and their class [N].

    A class is a pair of gratings, each with a frequency, an angle and a colour; a picture mixes
    them with random phases and weights, and turns them a little.
    """
    made = torch.Generator().manual_seed(seed)
    angle = torch.rand(classes, 2, generator=made) * math.pi
    frequency = 0.8 + 1.6 * torch.rand(classes, 2, generator=made)
    colour = torch.randn(classes, 2, 3, generator=made)
    labels = torch.randint(classes, (count,), generator=made)
    grid = torch.linspace(-math.pi, math.pi, side)
    pictures = torch.empty(count, 3, side, side)
    for start in range(0, count, 5000):
        part = labels[start : start + 5000]
        size = (len(part), 2, 1, 1)
        turned = angle[part][..., None, None] + 0.15 * torch.randn(size, generator=made)
        phase = 2 * math.pi * torch.rand(size, generator=made)
        along = torch.cos(turned) * grid[:, None] + torch.sin(turned) * grid[None, :]
        waves = torch.sin(frequency[part][..., None, None] * along + phase)
        weight = 0.3 + 0.7 * torch.rand(size, generator=made)
        mixed = torch.einsum("nkhw,nkc->nchw", weight * waves, colour[part])
        pictures[start : start + len(part)] = mixed + noise * torch.randn(
            mixed.shape, generator=made
        )
    return pictures, labels


def strokes(count: int, side: int, seed: int) -> Tensor:
    """Return pictures [N, side, side] of two soft curves each, values 0 to 1."""
    made = torch.Generator().manual_seed(seed)
    grid = torch.linspace(-1, 1, side)
    along = torch.linspace(0, 1, 12)
    basis = torch.stack([(1 - along) ** 2, 2 * along * (1 - along), along**2])  # quadratic Bezier
    pictures = torch.empty(count, side, side)
    for start in range(0, count, 5000):
        rows = min(5000, count - start)
        control = 1.8 * torch.rand(rows, 2, 3, 2, generator=made) - 0.9
        points = torch.einsum("nkpc,pt->nktc", control, basis).flatten(1, 2)  # [n, 24, 2]
        dx = torch.exp(-((points[..., 0, None] - grid) ** 2) / 0.03)
        dy = torch.exp(-((points[..., 1, None] - grid) ** 2) / 0.03)
        pictures[start : start + rows] = torch.einsum("nth,ntw->nhw", dy, dx).clamp(max=1.0)
    return pictures


def _coordinates(count: int, side: int, made: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return each pixel's place in a shape's own frame, in units of its size."""
    grid = torch.linspace(-1, 1, side)
    centre = 0.9 * (torch.rand(count, 2, 1, 1, generator=made) - 0.5)
    size = 0.35 + 0.35 * torch.rand(count, 1, 1, generator=made)
    angle = 0.5 * torch.randn(count, 1, 1, generator=made)
    dx = (grid[None, None, :] - centre[:, 0]) / size
    dy = (grid[None, :, None] - centre[:, 1]) / size
    cos, sin = torch.cos(angle), torch.sin(angle)
    return cos * dx + sin * dy, cos * dy - sin * dx


def _shape(label: int, x: Tensor, y: Tensor) -> Tensor:
    """Return 1 inside of a shape and 0 outside."""
    radius, square = torch.hypot(x, y), torch.maximum(x.abs(), y.abs())
    thin_x, thin_y = x.abs() < 0.35, y.abs() < 0.35
    inside = (
        radius < 1,
        (radius < 1) & (radius > 0.55),
        square < 0.9,
        (square < 0.9) & (square > 0.5),
        (y < 0.8) & (y > 2 * x.abs() - 1),
        (thin_x | thin_y) & (square < 1),
        ((x + y).abs() < 0.5) | ((x - y).abs() < 0.5),
        thin_y & (x.abs() < 1.2),
        (thin_x & (y.abs() < 1)) | ((y > 0.3) & (y < 1) & (x.abs() < 1)),
        x.abs() + y.abs() < 1,
    )[label]
    return (inside & (square < 1.2)).to(torch.float32)
