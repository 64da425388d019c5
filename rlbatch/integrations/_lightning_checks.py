"""What the controller cannot steer in a Lightning Trainer, refused before the run begins."""

from __future__ import annotations

from collections.abc import Iterator
from inspect import signature
from typing import Any

import lightning
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch.optim import LBFGS, Optimizer

from rlbatch.errors import ConfigurationError

_LOOP = ("_data_source", "_data_fetcher", "_combined_loader", "max_batches", "epoch_loop")
_EPOCH_LOOP = ("batch_progress", "max_steps", "min_steps", "global_step")
_OPTIMIZATION = ("_on_before_zero_grad",)

# Callbacks that change what the controller changes.
_RIVALS = {
    "GradientAccumulationScheduler": "changes the batch size too. Remove it",
    "BatchSizeFinder": "changes the batch size too. Remove it, and give what fits into memory as "
    "micro_batch_size",
    "StochasticWeightAveraging": "accumulates gradients over its last epoch and replaces the "
    "learning rate's schedule. Use WeightAveraging",
}


def check_fit(trainer: Any, module: Any) -> None:
    """Refuse a Trainer under which a changed batch size would not be what is trained on.

    Raises:
        ConfigurationError: There is such a setting; the message says what to do.
    """
    loop = trainer.fit_loop
    missing = [name for name in _LOOP if not hasattr(loop, name)]
    epoch_loop = getattr(loop, "epoch_loop", None)
    missing += [name for name in _EPOCH_LOOP if not hasattr(epoch_loop, name)]
    optimization = getattr(epoch_loop, "automatic_optimization", None)
    missing += [name for name in _OPTIMIZATION if not hasattr(optimization, name)]
    if missing:
        raise ConfigurationError(
            f"Expected the Trainer of lightning 2.6, got that of {lightning.__version__}, whose "
            f"loop has no {', '.join(missing)}. Run: pip install 'lightning>=2.6,<2.7'"
        )
    _raise([*_trainer_problems(trainer), *_callback_problems(trainer), *_module_problems(module)])


def check_optimization(trainer: Any, module: Any) -> None:
    """Refuse optimizers and schedules that cannot be kept to.

    Raises:
        ConfigurationError: There is one.
    """
    problems: list[str] = []
    optimizers: list[Any] = trainer.optimizers
    if len(optimizers) != 1 or not isinstance(optimizers[0], Optimizer):
        problems.append("configure_optimizers returns no optimizer. Let it return one")
    elif isinstance(optimizers[0], LBFGS):
        problems.append("LBFGS runs several passes in one step. Choose another optimizer")
    by_steps = any(config.interval == "step" for config in trainer.lr_scheduler_configs)
    if by_steps and is_overridden("lr_scheduler_step", module):
        problems.append(
            f"{type(module).__name__} steps schedules by optimizer steps in lr_scheduler_step, of "
            "which there are more or fewer. Leave the method out, or give interval='epoch'"
        )
    for config in trainer.lr_scheduler_configs:
        if config.reduce_on_plateau and config.interval == "step":
            problems.append(
                f"{type(config.scheduler).__name__} follows a metric and counts optimizer steps, "
                "of which there are more or fewer. Give it interval='epoch'"
            )
    _raise(problems)


def require_whole_epochs(trainer: Any) -> None:
    """Refuse to go on within an epoch that began without a controller.

    Raises:
        ConfigurationError: The Trainer's checkpoint is of such a place.
    """
    loop = trainer.fit_loop
    progress = loop.epoch_loop.batch_progress
    if loop.restarting and progress.current.ready and not progress.is_last_batch:
        raise ConfigurationError(
            "Expected a checkpoint of a controlled run, got one from the middle of an epoch of "
            "another: the samples that it has seen cannot be told. Resume from one of an "
            "epoch's end, or load its weights with load_from_checkpoint."
        )


def _raise(problems: list[str]) -> None:
    if problems:
        raise ConfigurationError(
            "The batch size cannot be controlled: " + ". ".join(problems) + "."
        )


def _trainer_problems(trainer: Any) -> Iterator[str]:
    strategy = trainer.strategy
    if type(strategy) not in (SingleDeviceStrategy, DDPStrategy):
        yield (
            f"{type(strategy).__name__} steps or shares parameters by rules of its own. Use one "
            "device, or strategy='ddp'"
        )
    if trainer.reload_dataloaders_every_n_epochs:
        yield (
            f"reload_dataloaders_every_n_epochs={trainer.reload_dataloaders_every_n_epochs} makes "
            "a new loader in the middle of the run. Set it to 0, and let the sampler or the "
            "dataset change by the epoch"
        )
    if trainer.overfit_batches:
        yield (
            "overfit_batches replaces the training data. Leave the callback out for that, or train "
            "on a torch.utils.data.Subset"
        )


def _callback_problems(trainer: Any) -> Iterator[str]:
    names = [type(callback).__name__ for callback in trainer.callbacks]
    for name, problem in _RIVALS.items():
        if name in names:
            yield f"the callback {name} {problem}"
    if names.count("BatchSizeCallback") > 1:
        yield "there are two BatchSizeCallbacks. Remove one"


def _module_problems(module: Any) -> Iterator[str]:
    if not module.automatic_optimization:
        yield (
            f"{type(module).__name__} optimizes manually, so that the Trainer does not know which "
            "batches a step is made of. Set automatic_optimization = True, or use "
            "rlbatch.BatchController in a loop of your own"
        )
    if "dataloader_iter" in signature(module.training_step).parameters:
        yield "training_step takes a dataloader_iter. Let it take the batch"
