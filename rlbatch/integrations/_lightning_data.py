"""The training data of a Lightning run: the user's loader, made elastic behind its back."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from math import lcm
from typing import Any

from lightning.pytorch.trainer.states import RunningStage
from torch.utils.data import (
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    Sampler,
    SequentialSampler,
)

from rlbatch.control.limits import require_samples
from rlbatch.control.loader import ControlledLoader
from rlbatch.data.loader import loader_options
from rlbatch.errors import ConfigurationError, DeliveryError
from rlbatch.integrations._shared import SampleCount, plain_loader


class PlainCount:
    """What the run without a controller would have counted at a place in the data.

    Attributes:
        batch_size: Samples of one of the loader's batches, over all ranks.
        accumulation: Batches of an optimizer step.
        samples: Of an epoch.
        batches: Of an epoch.
        steps: Counts optimizer steps.
    """

    def __init__(self, batch_size: int, accumulation: int, samples: int) -> None:
        """Count for a loader of that batch size."""
        self.batch_size, self.accumulation, self.samples = batch_size, accumulation, samples
        self.batches = -(-samples // batch_size)
        self.steps = SampleCount(batch_size * accumulation, samples)

    def batches_at(self, position: int) -> int:
        """Return the batches of an epoch that are complete at a position in it."""
        return self.batches if position >= self.samples else position // self.batch_size

    def validations(self, every: int | None, place: tuple[int, int], by_epochs: bool) -> int:
        """Return the validations that the plain run makes up to a place.

        Args:
            every: Batches between two; None where they go by the clock.
            place: Epoch and position in it.
            by_epochs: They are counted anew in each epoch.
        """
        if not every:
            return 0
        epoch, within = place[0], self.batches_at(place[1])
        if by_epochs:
            return int(epoch * (self.batches // every) + within // every)
        return int((epoch * self.batches + within) // every)

    def planned_epochs(self, max_epochs: int | None, max_steps: int) -> float:
        """Return how many epochs a Trainer is to train, 0 where it does not say."""
        epochs = max_epochs or 0
        if max_steps == -1:
            return epochs
        by_steps = self.steps.epochs(max_steps)
        return min(epochs, by_steps) if epochs > 0 else by_steps

    def schedule_steps(self, frequency: int, epoch: int, position: int) -> int:
        """Return the steps of a scheduler that goes by optimizer steps.

        Lightning makes one where the optimizer steps and the number of the batch in its epoch is a
        multiple of `frequency`.
        """
        within = self._schedule_steps(frequency, self.batches_at(position))
        return epoch * self._schedule_steps(frequency, self.batches) + within

    def _schedule_steps(self, frequency: int, batches: int) -> int:
        ends = batches == self.batches and batches % self.accumulation != 0
        extra = ends and batches % frequency == 0
        return batches // lcm(self.accumulation, frequency) + extra


class FirstSamples(Sampler[int]):
    """The head of another sampler's order: what `limit_train_batches` leaves of an epoch."""

    def __init__(self, sampler: Any, size: int) -> None:
        """Take so many samples of each epoch."""
        self.sampler, self._size = sampler, size

    def __iter__(self) -> Iterator[int]:
        return islice(iter(self.sampler), self._size)

    def __len__(self) -> int:
        return self._size

    def __getattr__(self, name: str) -> Any:
        if name in ("set_epoch", "epoch"):  # those of a sampler that shuffles by the epoch
            return getattr(self.sampler, name)
        raise AttributeError(name)


class EpochLoader:
    """What Lightning iterates over: the user's loader, or the controlled one once there is one.

    Its length is that of the user's loader, from which Lightning and configure_optimizers compute
    the horizon of schedules: in the units of the plain run, which count samples.

    Attributes:
        users: The user's loader.
        plain: One of whole optimizer steps of this rank, over the samples of an epoch.
        count: What the plain run counts.
        elastic: In place of the user's.
    """

    def __init__(self, users: DataLoader[Any], trainer: Any) -> None:
        """Take a loader over.

        Raises:
            ConfigurationError: Its batches cannot be put together in other sizes.
        """
        ranks, steps = trainer.world_size, trainer.accumulate_grad_batches
        if ranks > 1:
            users = _on_ranks(users, trainer)
        self.users = users
        if isinstance(users.dataset, IterableDataset):
            raise ConfigurationError(
                f"Expected a dataset with indices, got the stream {type(users.dataset).__name__} "
                "(an IterableDataset), which this callback does not control. Index its samples, or "
                "use rlbatch.BatchController in a loop of your own."
            )
        size = getattr(users.batch_sampler, "batch_size", None) or 1
        require_samples("The training loader's batch size", size)
        self.plain = plain_loader(users, size * steps)
        samples = _epoch_size(self.plain.sampler)
        self._length = -(-samples // (size * ranks))
        left = _limited(trainer.limit_train_batches, self._length) * size * ranks
        if left < samples:
            if ranks > 1:
                raise ConfigurationError(
                    "Expected whole epochs on several ranks, got "
                    f"limit_train_batches={trainer.limit_train_batches}. Train on a "
                    "torch.utils.data.Subset of the data, or end the run by max_steps."
                )
            samples, sampler = left, self.plain.sampler
            self.plain = _with_sampler(self.plain, size * steps, FirstSamples(sampler, left))
        self.count = PlainCount(size * ranks, steps, samples)
        self.elastic: ControlledLoader | None = None
        self.dataset = users.dataset
        self.on_fetch: Any = None

    @property
    def sampler(self) -> Any:
        """The user's; Lightning calls its `set_epoch`, if there is one."""
        return self.users.sampler

    @property
    def worker_init_fn(self) -> Any:
        """Seeds the workers; `seed_everything(workers=True)` sets it."""
        return self.plain.worker_init_fn

    @worker_init_fn.setter
    def worker_init_fn(self, function: Any) -> None:
        self.users.worker_init_fn = self.plain.worker_init_fn = function

    def __len__(self) -> int:
        """Return the batches of an epoch of the plain run, before `limit_train_batches`."""
        return self._length

    def __iter__(self) -> Iterator[Any]:
        """Hand out an epoch; nothing happens before the first batch is asked for."""
        if self.elastic is None:
            yield from self.users
            return
        batches: Iterator[Any] | None = None
        while True:
            # May put a random state back, from which the loader draws its order.
            if not self.on_fetch():
                return
            batches = iter(self.elastic) if batches is None else batches
            try:
                batch = next(batches)
            except StopIteration:
                break
            yield batch
        sampler = self.elastic.sampler
        if 0 < sampler.position < self.count.samples:
            raise DeliveryError(
                f"Expected {self.count.samples} samples in the epoch, as the sampler's length "
                f"says, got {sampler.position}. Give it the length of its iteration."
            )

    def state_dict(self) -> dict[str, Any]:
        """Return nothing: the callback keeps the place. To Lightning it says: can be resumed."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Do nothing: the callback goes to the place."""


class TrainSource:
    """Stands for Lightning's source of training data and hands out what that does, taken over.

    Attributes:
        loader: The latest that was handed out.
    """

    def __init__(self, source: Any, trainer: Any) -> None:
        """Wrap the source of a trainer."""
        self.source, self._trainer = source, trainer
        self.loader: EpochLoader | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.source, name)

    def dataloader(self) -> EpochLoader:
        """Return the user's training data, controlled.

        Raises:
            ConfigurationError: They are not one DataLoader, or it cannot be steered.
        """
        users = self.source.dataloader()
        if not isinstance(users, DataLoader):
            raise ConfigurationError(
                f"Expected one torch DataLoader for training, got a {type(users).__name__}. Let "
                "one DataLoader hand out what belongs together, from a dataset of tuples."
            )
        self.loader = EpochLoader(users, self._trainer)
        return self.loader


def _limited(limit: int | float, batches: int) -> int:
    return min(limit, batches) if isinstance(limit, int) else int(batches * limit)


def _epoch_size(sampler: Any) -> int:
    if isinstance(sampler, DistributedSampler):
        return len(sampler.dataset)  # pyright: ignore[reportArgumentType]
    try:
        return len(sampler)
    except TypeError:
        raise ConfigurationError(
            f"Expected a sampler that knows how many samples an epoch has, got a "
            f"{type(sampler).__name__} without __len__. Give it one."
        ) from None


def _on_ranks(users: DataLoader[Any], trainer: Any) -> DataLoader[Any]:
    """Return the loader with the sampler that Lightning gives it on several ranks."""
    if trainer._accelerator_connector.use_distributed_sampler:
        known = (DistributedSampler, RandomSampler, SequentialSampler)
        if not isinstance(users.sampler, known):
            raise ConfigurationError(
                f"Lightning would divide the order of {type(users.sampler).__name__} among "
                f"{trainer.world_size} ranks before it is known how large batches are. Use "
                "Trainer(use_distributed_sampler=False), and give the sampler a torch.Generator "
                "with the same seed on each rank."
            )
        users = trainer._data_connector._prepare_dataloader(
            users, shuffle=True, mode=RunningStage.TRAINING
        )
    return users


def _with_sampler(loader: DataLoader[Any], batch_size: int, sampler: Any) -> DataLoader[Any]:
    return DataLoader(loader.dataset, batch_size, sampler=sampler, **loader_options(loader))
