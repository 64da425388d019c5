"""A loop adapter over an elastic torch loader, for loops that others wrote."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from rlbatch.control import checks
from rlbatch.control.build import keeps_size
from rlbatch.control.config import ControllerConfig
from rlbatch.control.loader import Consumer, ControlledLoader, loader_sizes, sizes_for_model
from rlbatch.control.ranks import Ranks
from rlbatch.control.torch_parts import torch_parts
from rlbatch.data.delivery import Delivered
from rlbatch.data.step_plan import micro_batch_totals
from rlbatch.integrations._rank_states import of_rank, with_ranks
from rlbatch.loop_adapter import LoopAdapter
from rlbatch.policy.base import Policy


class TorchLoop:
    """Ties a loop adapter to what the loader hands out and to the optimizer's steps.

    Between `attach` and `detach` the learning rate is coupled to the batch size within each step of
    the optimizer.

    Attributes:
        adapter: Decides.
        loader: Hands out micro-batches.
        ranks: The processes that train together.
    """

    def __init__(  # noqa: PLR0913 - keywords, each for itself
        self,
        consumer: Consumer,
        model: nn.Module,
        optimizer: Optimizer,
        loader: DataLoader[Any],
        *,
        batch_size: int,
        policy: Policy | str,
        config: ControllerConfig,
        epochs: float,
        scaler: Any = None,
    ) -> None:
        """Make a loader elastic; it is not used itself any more.

        Args:
            consumer: Is told about each micro-batch.
            model: What is trained.
            optimizer: Its optimizer.
            loader: Of the user's whole batches, on this rank.
            batch_size: The user's, over all ranks.
            policy: A name or a policy.
            config: The settings.
            epochs: How long the run is planned to be; 0: unknown.
            scaler: A `torch.amp.GradScaler` in use.

        Raises:
            ConfigurationError: The loader's batches cannot be resized.
        """
        checks.check_training(model, optimizer)
        self.ranks = ranks = Ranks.of(model)
        loader = ranks.share(loader)
        limits, (own_size, dataset_size) = config.limits, loader_sizes(loader)
        told = {"drop_last": loader.drop_last, "micro_batch_size": limits.micro_batch_size}
        ranks.require_same(batch_size=own_size, samples_of_an_epoch=dataset_size, **told)
        config = config.lasting(epochs)
        self._model = model
        parts = torch_parts(model, optimizer, scaler=scaler, ranks=ranks)
        self._rate, self._detach = parts.rate, _nothing
        self.adapter = LoopAdapter(
            parts,
            batch_size=batch_size,
            dataset_size=dataset_size,
            policy=policy,
            config=sizes_for_model(config, model, batch_size, dataset_size, ranks.world_size),
            ranks=ranks,
        )
        self.loader = self.adapter.loader = ControlledLoader(
            loader,
            consumer,
            batch_size=batch_size,
            micro_batch_size=limits.known_micro_batch_size if limits.divisible else None,
            ranks=ranks,
        )
        self.loader.sampler.largest_step = limits.largest_step(ranks.world_size)

    @property
    def changes(self) -> bool:
        """Whether the batch size may change."""
        return not keeps_size(self.adapter.policy_name, self.adapter.config)

    @property
    def place(self) -> tuple[int, int]:
        """The epoch, and the samples of it after the latest step."""
        return self.loader.epoch, self.loader.sampler.position

    def begin_epoch(self) -> None:
        """An iteration over the loader begins."""
        checks.take_over(self._model, self)
        self.adapter.begin_epoch()

    def close(self) -> None:
        """The run is over: leave the optimizer as it was and close the log."""
        self.detach()
        checks.release(self._model, self)
        self.adapter.close()

    def begin_step(self, plan: Delivered, sizes: Sequence[int] | None = None) -> None:
        """Announce the optimizer step of a micro-batch.

        Args:
            plan: Of any of its micro-batches.
            sizes: What each of them weighs in the gradient, in samples; None: what it holds.
        """
        checks.require_owner(self._model, self)
        if sizes is None:
            count, world_size = plan.micro_batches, self.ranks.world_size
            sizes = micro_batch_totals(plan.step_samples, count, world_size)
        self.adapter.begin_step(plan.batch_size, sizes)

    def end_step(self, plan: Delivered) -> None:
        """Count an optimizer step that was made; after the last one of a chunk, decide."""
        self.adapter.end_step(plan.step_samples, epoch=plan.epoch, position=plan.step_end)

    def state_of_ranks(self) -> dict[str, Any]:
        """Return the controller's state with what each rank has of its own; all have to call it."""
        return with_ranks(self.adapter.state_dict(), self.ranks)

    def load_state_of_ranks(self, state: Any) -> None:
        """Continue from what `state_of_ranks` returned on rank 0.

        Raises:
            ConfigurationError: The state is damaged or of another run.
        """
        with self.ranks.refuse_together():
            own = of_rank(state, self.ranks)
        self.adapter.load_state_dict(own)

    def limit_next(self, samples: int) -> None:
        """Let the coming steps have so many samples at most: the run ends after them."""
        world_size = self.ranks.world_size
        samples = max(world_size, samples - samples % world_size)
        self.loader.set_batch_size(min(self.adapter.batch_size, samples))

    def attach(self) -> None:
        """Couple the learning rate within each of the optimizer's steps, from now on."""
        self.detach()
        self._detach: Callable[[], None] = self._rate.attach()

    def detach(self) -> None:
        """Leave the optimizer as it was."""
        detach, self._detach = self._detach, _nothing
        detach()


def _nothing() -> None:
    """Detach nothing."""
