"""Adds the micro-batches of a step up to the gradient of the whole batch."""

from __future__ import annotations

from rlbatch.data.delivery import Delivered
from rlbatch.data.step_plan import require_positive
from rlbatch.errors import DeliveryError


class LossWeights:
    """Weights micro-batch losses, and refuses a step that is put together wrongly.

        for batch in loader:
            delivered = sampler.next_delivered()
            (accumulator.add(delivered, len(batch)) * mean_loss(batch)).backward()
            if delivered.is_last:
                accumulator.close()
                optimizer.step()
                optimizer.zero_grad()

    With several ranks, all but a step's last backward pass go under `model.no_sync()`.
    """

    def __init__(self, world_size: int = 1) -> None:
        """Start between two steps.

        Args:
            world_size: Ranks whose gradients are averaged (not summed) before the step.

        Raises:
            ConfigurationError: There is less than one rank.
        """
        require_positive("world_size", world_size)
        self._world_size = world_size
        self._last: Delivered | None = None

    @property
    def is_open(self) -> bool:
        """Whether a step has been begun and not yet closed."""
        return self._last is not None

    def loss_weight(self, delivered: Delivered) -> float:
        """Return the factor for a micro-batch's mean loss before its backward pass.

        With it, the average over ranks of the accumulated gradients is the gradient of the mean
        loss over all samples of the step, whatever the sizes of micro-batches and shares.
        """
        return delivered.micro_size * self._world_size / delivered.step_samples

    def add(self, delivered: Delivered, samples: int | None = None) -> float:
        """Take a micro-batch into the step and return its loss weight.

        Args:
            delivered: The micro-batch's plan.
            samples: How many samples arrived, if known: compared with the plan.

        Raises:
            DeliveryError: The micro-batch is not the next one of the step, or has another size.
        """
        if samples is not None and samples != delivered.micro_size:
            raise DeliveryError(
                f"Expected a micro-batch of {delivered.micro_size} samples, got {samples}. Call "
                "next_delivered once for each batch that arrives, and change no sizes in between."
            )
        last = self._last
        if last is None and delivered.position:
            raise DeliveryError(
                f"Expected the first micro-batch of step {delivered.step}, got number "
                f"{delivered.position}. Call add for every micro-batch, and close only "
                "after the last."
            )
        if last is not None and not _follows(last, delivered):
            raise DeliveryError(
                f"Expected micro-batch {last.position + 1} of {last.micro_batches} of step "
                f"{last.step}, got {delivered.position} of step {delivered.step}. Call close "
                "after each step's last micro-batch; after a loop that was left inside a step, "
                "call discard and optimizer.zero_grad."
            )
        self._last = delivered
        return self.loss_weight(delivered)

    def close(self) -> None:
        """End the step; call it right before `optimizer.step()`.

        Raises:
            DeliveryError: Micro-batches of the step are missing.
        """
        last = self._last
        if last is None or not last.is_last:
            state = "none" if last is None else f"{last.position + 1} of {last.micro_batches}"
            raise DeliveryError(
                f"Expected all micro-batches of a step before the optimizer step, got {state}. "
                "Step only when the delivered micro-batch is_last."
            )
        self._last = None

    def discard(self) -> None:
        """Forget an unfinished step; the caller zeroes the gradients."""
        self._last = None


def _follows(last: Delivered, delivered: Delivered) -> bool:
    same_step = (last.epoch, last.step) == (delivered.epoch, delivered.step)
    return same_step and delivered.position == last.position + 1
