"""The passes that the user's own loop makes, and what a model normalises over in them."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

if TYPE_CHECKING:
    from rlbatch.control.config import ControllerConfig
    from rlbatch.control.limits import Limits


def smallest_part(model: nn.Module) -> int:
    """Return the fewest samples of a micro-batch that a model can be trained on.

    Two where there is batch normalisation: a single value has no variance.
    """
    normalises = any(isinstance(layer, _BatchNorm) for layer in model.modules())
    return 2 if normalises else 1


def in_users_parts(
    config: ControllerConfig, model: nn.Module, samples: int, *, accumulates: bool
) -> ControllerConfig:
    """Return the settings of a run whose passes are the user's own, unless they say otherwise.

    Args:
        config: The settings.
        model: What is trained.
        samples: Of a pass of the user's loop on one rank.
        accumulates: The user's steps are made of several.
    """
    limit = config.limits.known_micro_batch_size
    if accumulates and limit is None:
        return config.in_parts_of(samples)
    warn_of_smaller_parts(model, config.limits, samples)
    return config


def warn_of_smaller_parts(model: nn.Module, limits: Limits, samples: int) -> None:
    """Warn where batches are normalised in smaller parts than in the user's loop.

    Args:
        model: What is trained.
        limits: Of the sizes. A limit that is found out begins at the user's own.
        samples: Of a pass of the user's loop on one rank.
    """
    limit = limits.micro_batch_size
    if not limits.divisible or not isinstance(limit, int) or limit >= samples:
        return
    # A model that is all in evaluation mode has yet to be told to train.
    normalises = any(
        isinstance(layer, _BatchNorm) and (layer.training or not model.training)
        for layer in model.modules()
    )
    if normalises:
        warnings.warn(
            f"rlbatch: micro_batch_size={limit} divides batches of {samples}, and batch "
            f"normalisation then goes over {limit} samples: another gradient than that of the "
            f"whole batch, and other running statistics. Set micro_batch_size={samples} or more, "
            "or give the loader smaller batches; or take group or layer normalisation.",
            RuntimeWarning,
            stacklevel=3,
        )
