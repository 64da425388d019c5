"""A training job as a value, and the door through which jobs come in by name or from a file."""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import Dataset, IterableDataset, default_collate

from rlbatch.envs.task_files import refuse_namesakes, remember_loaded
from rlbatch.envs.task_module import execute, importable
from rlbatch.envs.tasks import RANDOM_KINDS, TASK_VARIANTS
from rlbatch.errors import ConfigurationError, RlbatchError, UnknownNameError

SMALLEST_SHARE = 16
"""Of the task's batch size: its sixteenth is the smallest that a controller may choose."""


@dataclass(frozen=True)
class Task:
    """A training job: everything that a run needs except the batch size to run it at.

    A file whose function returns one of these is enough to run, compare or train on a job.

    Attributes:
        name: How logs and tables call the task.
        model: Returns a fresh network; called right after seeding, so it needs no seed of its own.
        train_set: Map-style dataset. A `__getitems__` is used when there is one.
        val_set: Map-style dataset, disjoint from `train_set`.
        loss: `loss(model, batch)` is the mean over the samples of one collated batch, a scalar.
        optimizer: Makes the optimizer from the model's parameters, with the learning rate set.
        batch_size: Samples per optimizer step for which that learning rate was chosen.
        target: Validation loss that ends a run.
        max_batch_size: Largest batch size to try; None leaves it to the run.
        scheduler: `scheduler(optimizer, steps)` makes a learning rate schedule over the `steps`
            planned at `batch_size`; None keeps the learning rate constant.
        epochs: Length of the schedule in passes over `train_set`. With None a benchmark makes it
            somewhat longer than a run without a schedule needs to the target.
        collate: Makes a batch of what the dataset returns; None means torch's default.
    """

    name: str
    model: Callable[[], nn.Module]
    train_set: Dataset[Any]
    val_set: Dataset[Any]
    loss: Callable[[nn.Module, Any], Tensor]
    optimizer: Callable[[Iterable[nn.Parameter]], Optimizer]
    batch_size: int
    target: float
    max_batch_size: int | None = None
    scheduler: Callable[[Optimizer, int], LRScheduler] | None = None
    collate: Callable[..., Any] | None = None
    epochs: float | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot be run.

        Raises:
            ConfigurationError: A field is of the wrong kind or out of range.
        """
        if not self.name:
            raise ConfigurationError("A task needs a non-empty name, got ''. Give it one.")
        for field in ("model", "loss", "optimizer"):
            _require_callable(self.name, field, getattr(self, field))
        for field in ("scheduler", "collate"):
            if getattr(self, field) is not None:
                _require_callable(self.name, field, getattr(self, field))
        train_size = _require_size(self.name, "train_set", self.train_set)
        _require_size(self.name, "val_set", self.val_set)
        _require_batch_sizes(self.name, self.batch_size, self.max_batch_size, train_size)
        if not (math.isfinite(self.target) and self.target > 0.0):
            raise ConfigurationError(
                f"Task {self.name!r}: target must be a positive finite validation loss, got "
                f"{self.target}. Take one that a good run reaches; "
                "add a constant to a loss that can be negative."
            )
        if self.epochs is not None and not (math.isfinite(self.epochs) and self.epochs > 0.0):
            raise ConfigurationError(
                f"Task {self.name!r}: epochs must be a positive number of passes over train_set, "
                f"got {self.epochs}. Leave it out if the length of the schedule is not fixed."
            )

    def planned_steps(self) -> int | None:
        """Return the steps at `batch_size` that the schedule is made for.

        None without a schedule, or where `epochs` does not say how long it is.
        """
        if self.scheduler is None or self.epochs is None:
            return None
        size: Any = self.train_set
        return planned_length(self.epochs, len(size), self.batch_size)


def planned_length(epochs: float, dataset_size: int, batch_size: int) -> int:
    """Return the steps at a batch size for so many epochs; the last one may be incomplete."""
    return max(1, math.ceil(epochs * dataset_size / batch_size))


def smallest_batch_size(task: Task, start_batch_size: int | None = None) -> int:
    """Return the smallest batch size that a controlled run of a task may use.

    A sixteenth of the task's own, or the first one where that is less: below, a run teaches nothing
    but how slow it is.

    Args:
        task: What is trained.
        start_batch_size: First batch size; None for the task's.
    """
    lowest = max(1, task.batch_size // SMALLEST_SHARE)
    return lowest if start_batch_size is None else min(lowest, start_batch_size)


def _require_callable(task: str, field: str, value: object) -> None:
    if not callable(value):
        raise ConfigurationError(
            f"Task {task!r}: {field} must be callable, got {value!r}. "
            f"Pass a function, for example `{field}=lambda ...: ...`, not its result."
        )


def _require_size(task: str, field: str, dataset: Any) -> int:
    """Return the length of a map-style dataset."""
    mappable = hasattr(dataset, "__getitem__") or hasattr(dataset, "__getitems__")
    if isinstance(dataset, IterableDataset) or not mappable or not hasattr(dataset, "__len__"):
        raise ConfigurationError(
            f"Task {task!r}: {field} must be a map-style dataset with __len__ and __getitem__, got "
            f"{type(dataset).__name__}. Read an iterable into a list first."
        )
    size = len(dataset)
    if size < 1:
        raise ConfigurationError(
            f"Task {task!r}: {field} must hold at least one sample, got none. "
            "Check its path or split."
        )
    return size


def _require_batch_sizes(task: str, batch_size: Any, max_batch_size: Any, train_size: int) -> None:
    for field, value in (("batch_size", batch_size), ("max_batch_size", max_batch_size)):
        if value is None and field == "max_batch_size":
            continue
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ConfigurationError(
                f"Task {task!r}: {field} must be a whole number of samples, at least 1, got "
                f"{value!r}. Pass an int."
            )
        if value > train_size:
            raise ConfigurationError(
                f"Task {task!r}: {field} must be at most the {train_size} samples of train_set, "
                f"got {value}. Lower {field} or add samples."
            )
    if max_batch_size is not None and max_batch_size < batch_size:
        raise ConfigurationError(
            f"Task {task!r}: max_batch_size must be at least batch_size={batch_size}, got "
            f"{max_batch_size}. Raise max_batch_size or lower batch_size."
        )


def collate_samples(
    dataset: Any, indices: Sequence[int], collate: Callable[..., Any] | None = None
) -> Any:
    """Return the batch of the samples at `indices`, fetched as torch's DataLoader does.

    Args:
        dataset: Map-style dataset; its `__getitems__` is preferred to single look-ups.
        indices: Positions in the dataset, in the order wanted.
        collate: What makes a batch of the fetched samples; None means torch's default.
    """
    if getattr(dataset, "__getitems__", None):
        samples = dataset.__getitems__(list(indices))
    else:
        samples = [dataset[index] for index in indices]
    return (default_collate if collate is None else collate)(samples)


def task_names() -> list[str]:
    """Return the names of the built-in tasks, sorted."""
    return sorted(TASK_VARIANTS)


def resolve_task(spec: str | Task) -> Task:
    """Return the task that `spec` names, or is.

    Args:
        spec: A built-in name (`digits-mlp`); `path/to/file.py:function`, where the function takes
            no argument and returns a `Task` (the file may import its neighbours, as a script may);
            or `random:NUMBER` or `random-transformer:NUMBER`, see
            `rlbatch.envs.tasks.random_perceptron` and `random_transformer`. A `Task` is returned
            as it is.

    Raises:
        UnknownNameError: No built-in task has that name.
        ConfigurationError: The file or the function does not exist, or returns something else.
        RlbatchError: The file or its function raised; the original error is the cause.
        MissingExtraError: The task needs a package that is not installed.
    """
    if isinstance(spec, Task):
        return spec
    if not isinstance(spec, str):
        raise ConfigurationError(
            f"A task is given as its name, as path/to/file.py:function or as a Task, got {spec!r}."
        )
    if spec.partition(":")[0] in RANDOM_KINDS:
        maker = RANDOM_KINDS[spec.partition(":")[0]]
        return getattr(importlib.import_module(f"rlbatch.envs.tasks.{maker}"), maker)(spec)
    if ":" in spec or spec.endswith(".py"):
        return _task_from_file(spec)
    if spec not in TASK_VARIANTS:
        raise UnknownNameError("task", spec, TASK_VARIANTS)
    module, variant = TASK_VARIANTS[spec]
    return getattr(importlib.import_module(module).FAMILY, variant)()


def _task_from_file(spec: str) -> Task:
    file_name, _, function_name = spec.rpartition(":")
    if not file_name.endswith(".py") or not function_name.isidentifier():
        raise ConfigurationError(
            f"A task from a file is given as path/to/file.py:function, got {spec!r}. "
            "Name the Python file and, after a colon, the function in it that returns a Task."
        )
    path = Path(file_name).expanduser().resolve()
    if not path.is_file():
        raise ConfigurationError(
            f"Task {spec!r}: there is no file {path}. "
            f"Check the path; a relative one starts at {Path.cwd()}."
        )
    with importable(path.parent):
        before = set(sys.modules)
        module = execute(path, spec)
        function = getattr(module, function_name, None)
        if not callable(function):
            raise ConfigurationError(_missing_function(spec, path, function_name, module))
        try:
            task = function()
        except RlbatchError:
            raise
        except Exception as error:
            raise RlbatchError(
                f"Task {spec!r}: {function_name}() must return a Task, but raised "
                f"{type(error).__name__}: {error}. Call it by itself to find the cause."
            ) from error
        remember_loaded(path, before)
        refuse_namesakes(spec, path)
    if not isinstance(task, Task):
        raise ConfigurationError(
            f"Task {spec!r}: {function_name}() must return an rlbatch.envs.Task, got "
            f"{type(task).__name__}. Build a Task and return it."
        )
    return task


def _missing_function(spec: str, path: Path, function_name: str, module: ModuleType) -> str:
    functions = [
        name
        for name, value in vars(module).items()
        if callable(value) and getattr(value, "__module__", None) == module.__name__
    ]
    return (
        f"Task {spec!r}: {path} must define a function {function_name!r}, and does not. "
        f"It defines: {', '.join(sorted(functions)) or 'no function'}."
    )
