"""The 8x8 handwritten digits of scikit-learn, shared by the two digits families."""

from __future__ import annotations

import functools
import importlib
from typing import Any

import torch

from rlbatch.envs.tasks.table import TensorTable, shuffled_split
from rlbatch.extras import needs_extra

IMAGE_SIDE = 8  # pixels
CLASSES = 10
VAL_IMAGES = 397  # of 1,797, leaving 1,400 to train on
PIXEL_MAX = 16.0  # grey levels
PIXEL_MEAN, PIXEL_STD = 0.305, 0.376  # after division by PIXEL_MAX


@functools.cache
def digits() -> tuple[TensorTable, TensorTable]:
    """Return the training and validation images, [N, 64] standardised, with their classes [N].

    Raises:
        MissingExtraError: scikit-learn is not installed.
    """
    with needs_extra("train", "scikit-learn"):
        sklearn_datasets: Any = importlib.import_module("sklearn.datasets")
    raw = sklearn_datasets.load_digits()
    pixels = torch.tensor(raw.data, dtype=torch.float32) / PIXEL_MAX
    images = (pixels - PIXEL_MEAN) / PIXEL_STD
    labels = torch.tensor(raw.target, dtype=torch.int64)
    return shuffled_split((images, labels), VAL_IMAGES)
