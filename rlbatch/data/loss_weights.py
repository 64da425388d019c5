"""Adds the micro-batches of a step up to the gradient of the whole batch."""

from __future__ import annotations

import math

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

    Where the loss is a mean over something else than samples (tokens, classes with weights), give
    `add` what it was taken over. How much that is in the whole step is known behind its last part
    only: then multiply the gradients by `correction`.

    Attributes:
        unit: What a weight of one sample counts as until the correction, so that gradients keep
            their size meanwhile. A power of two, which changes no bit.
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
        self._total: float | None = None  # of the weights that were given in this step
        self._weighted: bool | None = None  # whether weights are given in it; None: not known yet
        self.unit = 1.0

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

    def add(
        self, delivered: Delivered, samples: int | None = None, *, weight: float | None = None
    ) -> float:
        """Take a micro-batch into the step and return its loss weight.

        Args:
            delivered: The micro-batch's plan.
            samples: How many samples arrived, if known: compared with the plan.
            weight: What the loss is the mean of, where that is not samples: for each part of a
                step, or for none.

        Raises:
            DeliveryError: The micro-batch is not the next one of the step, or has another size; or
                its weight is no weight.
        """
        if samples is not None and samples != delivered.micro_size:
            raise DeliveryError(
                f"Expected a micro-batch of {delivered.micro_size} samples, got {samples}. Call "
                "next_delivered once for each batch that arrives, and change no sizes in between."
            )
        self._require_next(delivered)
        self._require_alike(weight)
        self._last, self._weighted = delivered, weight is not None
        if weight is None:
            return self.loss_weight(delivered)
        self._total = (self._total or 0.0) + weight
        return weight * self._world_size / (self.unit * delivered.step_samples)

    def leave_out(self, delivered: Delivered) -> None:
        """Take a micro-batch into the step that has no loss; it adds nothing to the gradient.

        Raises:
            DeliveryError: It is not the next one of the step.
        """
        self._require_next(delivered)
        self._last = delivered

    def _require_next(self, delivered: Delivered) -> None:
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

    @property
    def total(self) -> float | None:
        """Sum of the weights of this step's parts so far; None where none was given."""
        return self._total

    def correction(self, total: float) -> float:
        """Return what the gradients of a whole step have to be multiplied by.

        With weights w_p and parts' gradients g_p, the gradient is then sum(w_p g_p) / sum(w_p).

        Args:
            total: Sum of all weights of the step, on all ranks; 0 leaves no gradient.

        Raises:
            DeliveryError: The step has no parts.
        """
        if self._last is None:
            raise DeliveryError("There is no step whose gradient could be corrected.")
        return self.unit * self._last.step_samples / total if total > 0.0 else 0.0

    def _require_alike(self, weight: float | None) -> None:
        if weight is not None and not 0.0 <= weight < math.inf:
            raise DeliveryError(
                f"Expected a weight of 0 or more, got {weight}. Give what the loss is the mean of: "
                "the number of tokens, or the sum of class weights."
            )
        if self._weighted not in (None, weight is not None):
            raise DeliveryError(
                "Expected a weight with every part of a step or with none, got some of each. Call "
                "backward(loss, weight=...) with what each loss is the mean of."
            )

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
        self._last = self._total = self._weighted = None

    def discard(self) -> None:
        """Forget an unfinished step; the caller zeroes the gradients."""
        self._last = self._total = self._weighted = None


def _follows(last: Delivered, delivered: Delivered) -> bool:
    same_step = (last.epoch, last.step) == (delivered.epoch, delivered.step)
    return same_step and delivered.position == last.position + 1
