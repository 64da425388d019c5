"""What cannot be steered, refused in one sentence before the run begins or at its first step.

Functions of plain objects, for every loop alike: each raises ConfigurationError or returns.
"""

from __future__ import annotations

import inspect
import warnings
import weakref
from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.data import (
    DistributedSampler,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from rlbatch.arguments import shown
from rlbatch.control.gradient_watch import parameters_of
from rlbatch.control.sharding import reshard
from rlbatch.data.order import ShuffledSampler
from rlbatch.errors import ConfigurationError
from rlbatch.signals.foreach import local

_FREE = (
    *(SequentialSampler, RandomSampler, SubsetRandomSampler, WeightedRandomSampler),
    *(DistributedSampler, ShuffledSampler, list, tuple, range),
)
# Attributes of samplers that lay the samples of a group side by side.
_GROUPS = (
    *("m_per_class", "num_instances", "n_instances", "samples_per_class", "instances_per_class"),
    *("images_per_class", "group_size", "num_repeats", "repeats", "num_samples_per_class"),
)
ONE_LOADER = (
    "A controller has one loader, and it was made already. Make it before the first epoch; between "
    "epochs its dataset and sampler may change what they hand out. For another DataLoader close() "
    "this controller and make a new one."
)
_LARGEST = 8  # samples of a group of neighbours; larger ones are blocks for the disk's sake
_CHANCE = 1e-4  # of taking labels in no order for groups
_OWNERS: weakref.WeakKeyDictionary[Any, weakref.ref[Any]] = weakref.WeakKeyDictionary()


def check_training(model: nn.Module, optimizer: Any) -> None:
    """Refuse an optimizer that cannot be steered, or that is none of the model's.

    Raises:
        ConfigurationError: The message says what to do.
    """
    check_model(model)
    check_optimizer(optimizer)
    check_owner_of_parameters(model, optimizer)
    check_backward_hooks(model, optimizer)


def check_model(model: Any) -> None:
    """Refuse what is no model."""
    if not isinstance(model, nn.Module):
        raise ConfigurationError(
            f"Expected the model that is trained, a torch.nn.Module, got {shown(model)}. "
            "Several models of one optimizer go into a torch.nn.ModuleList."
        )


def check_loader_size(batch_size: int, world_size: int, base_batch_size: int) -> None:
    """Refuse a loader of another batch size than the controller was made for.

    Args:
        batch_size: The loader's, on each rank.
        world_size: Ranks.
        base_batch_size: The controller's, over all ranks.
    """
    if batch_size * world_size == base_batch_size:
        return
    made = f"The controller was made for batch size {base_batch_size}, and the loader has"
    raise ConfigurationError(
        f"{made} {batch_size} on each of {world_size} ranks. Make the first the product."
        if world_size > 1
        else f"{made} {batch_size}. Give both the same one."
    )


def check_scaler(scaler: Any) -> None:
    """Refuse what is neither None nor works as a GradScaler.

    Raises:
        ConfigurationError: The message says what to give.
    """
    asked = ("scale", "unscale_", "step", "update")
    works = all(callable(getattr(scaler, name, None)) for name in asked)
    if scaler is not None and (isinstance(scaler, type) or not works):
        raise ConfigurationError(
            f"scaler must be a torch.amp.GradScaler, or None where there is none; got "
            f"{shown(scaler)}. Give the loop's own: GradScaler(device)."
        )


def check_optimizer(optimizer: Any) -> None:
    """Refuse optimizers that step by rules of their own, or have no learning rate to couple."""
    name = type(optimizer).__name__
    if not isinstance(getattr(optimizer, "param_groups", None), list):
        raise ConfigurationError(
            f"Expected a torch optimizer with param_groups, got {name}. Give the optimizer that "
            "steps the parameters, one only."
        )
    if _needs_closure(optimizer) or hasattr(optimizer, "first_step"):  # as SAM has it
        raise ConfigurationError(
            f"{name} runs several passes in one step (its step needs a closure, or there is a "
            "first_step), which a loop of one backward pass a batch does not have. Choose another "
            "optimizer."
        )
    for group in optimizer.param_groups:
        rate = group.get("lr")
        if isinstance(rate, bool) or not isinstance(rate, (int, float, Tensor)):
            raise ConfigurationError(
                f"Expected a learning rate in every parameter group of {name}, "
                f'param_groups[...]["lr"], got {rate!r}. Choose an optimizer, or settings of this '
                "one, with an explicit learning rate."
            )


def check_owner_of_parameters(model: nn.Module, optimizer: Any) -> None:
    """Refuse an optimizer of another model."""
    reshard(model)  # a validation may have been before
    held = {id(parameter) for parameter in parameters_of(optimizer)}
    own = [id(parameter) for parameter in model.parameters() if parameter.requires_grad]
    if own and not held.intersection(own):
        raise ConfigurationError(
            f"The {type(optimizer).__name__} holds no parameter of the {type(model).__name__} that "
            "is trained. Give model and optimizer of the same training, and make the optimizer "
            "behind whatever replaces parameters (to another device, fully_shard)."
        )


def check_backward_hooks(model: nn.Module, optimizer: Any) -> None:
    """Refuse optimizers that torch was told to step within the backward pass."""
    parameters = [*model.parameters(), *parameters_of(optimizer)]
    if any(getattr(parameter, "_in_backward_optimizers", None) for parameter in parameters):
        raise ConfigurationError(
            "An optimizer steps within the backward pass, where the gradient of the step is not "
            "complete. Remove the hooks that step, and let controller.step() do it."
        )


def warn_of_made_up_step(optimizer: Any) -> None:
    """Warn where an optimizer of a run that has yet to begin has counted a step already.

    `torch.distributed.checkpoint.state_dict.get_state_dict` makes one at a rate of zero, so that
    there is a state to save. Adam's averages are then weighted as if a gradient of zero had come
    first: the run is another one than without that call.
    """
    states = [state for state in optimizer.state.values() if "exp_avg" in state]
    if not states or any(float(state.get("step", 0)) != 1.0 for state in states):
        return
    if any(bool(local(state["exp_avg"]).any()) for state in states):
        return
    warnings.warn(
        f"rlbatch: {type(optimizer).__name__} has counted a step that the run did not make. "
        "get_state_dict of torch.distributed.checkpoint does so before the first one. Save behind "
        "a step for the first time, or call optimizer.state.clear() after it.",
        RuntimeWarning,
        stacklevel=6,
    )


def check_sampler(sampler: Any, batch_size: int) -> None:
    """Refuse samplers that say that they lay out groups or batches.

    Args:
        sampler: Gives the order of an epoch.
        batch_size: The user's, on one rank.
    """
    if isinstance(sampler, _FREE) or type(sampler).__name__ == "LengthGroupedSampler":
        return
    known: dict[str, Any] = getattr(sampler, "__dict__", {})
    found = [name for name in _GROUPS if isinstance(known.get(name), int) and known[name] > 1]
    if known.get("batch_size") == batch_size > 1:
        found.append("batch_size")
    if found:
        raise ConfigurationError(_groups(sampler, f"{found[0]}={known[found[0]]}"))


def check_order(sampler: Any, dataset: Any, indices: Sequence[Any]) -> None:
    """Refuse a sampler in whose first step groups of equal size lie side by side.

    Args:
        sampler: Gives the order of an epoch.
        dataset: What it is of; its labels are looked at if they are at hand.
        indices: The first samples of the epoch.
    """
    if isinstance(sampler, _FREE):
        return
    size = _run_length(indices)
    if size < 2 and all(isinstance(index, int) for index in indices):
        neighbours = _run_length([index - place for place, index in enumerate(indices)])
        size = neighbours if neighbours <= _LARGEST else 1
        size = max(size, _labels_side_by_side(dataset, cast("Sequence[int]", indices)))
    if size > 1:
        raise ConfigurationError(_groups(sampler, f"groups of {size}"))


def take_over(model: Any, controller: Any) -> None:
    """Note that a controller trains a model from now on: an older one may do so no more.

    Raises:
        ConfigurationError: A newer one has done so meanwhile.
    """
    reference = _OWNERS.get(model)
    owner = None if reference is None else reference()
    if owner is controller:
        return
    if owner is not None and getattr(controller, "_took_over", False):
        raise ConfigurationError(
            f"Another controller has begun to train the same {type(model).__name__}. One "
            "controller trains a model, over one loader: close() this one, or leave the other out."
        )
    if owner is not None:
        owner.ousted = True
    controller._took_over, controller.ousted = True, False
    _OWNERS[model] = weakref.ref(controller)


def release(model: Any, controller: Any) -> None:
    """Note that a controller is done with a model."""
    reference = _OWNERS.get(model)
    if reference is not None and reference() is controller:
        del _OWNERS[model]


def require_owner(model: Any, controller: Any) -> None:
    """Raise ConfigurationError where another controller has begun to train the model."""
    if getattr(controller, "ousted", False):  # asked in each step: no dictionary of weak keys
        take_over(model, controller)


def _needs_closure(optimizer: Any) -> bool:
    if isinstance(optimizer, torch.optim.LBFGS):
        return True
    try:
        parameters = list(inspect.signature(type(optimizer).step).parameters.values())[1:]
    except (TypeError, ValueError):
        return False
    return any(
        parameter.default is parameter.empty
        and parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
        for parameter in parameters
    )


def _groups(sampler: Any, what: str) -> str:
    return (
        f"The {type(sampler).__name__} lays samples that belong together side by side ({what}), "
        "and a batch of another size would tear them apart. Let the dataset return a whole group "
        "as one sample, whose collate_fn joins them, and shuffle the groups."
    )


def _run_length(values: Iterable[Any]) -> int:
    """Return the length of runs of equal values, if all whole ones are of one length; else 1."""
    runs = [len(list(run)) for _, run in groupby(values)]
    whole = runs[:-1]  # the step may end within the last
    alike = len(whole) > 1 and len(set(whole)) == 1 and runs[-1] <= whole[0]
    return whole[0] if alike else 1


def _labels_side_by_side(dataset: Any, indices: Sequence[int]) -> int:
    """Return the length of runs of equal labels if that is no chance, else 1."""
    labels: Any = getattr(dataset, "targets", None)
    labels = getattr(dataset, "labels", None) if labels is None else labels
    if labels is None:
        tensors = getattr(dataset, "tensors", ())  # of a TensorDataset
        labels = tensors[-1] if tensors else None
    try:
        found = [_plain(labels[index]) for index in indices]
        classes = len({_plain(label) for label in labels[:1000]})
    except (TypeError, ValueError, IndexError, KeyError, RuntimeError):
        return 1
    size = _run_length(found)
    repeated = len(found) - len(found) / size
    return size if classes > 1 and classes**-repeated < _CHANCE else 1


def _plain(label: Any) -> Any:
    return label.item() if hasattr(label, "item") else label
