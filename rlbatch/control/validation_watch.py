"""Notices a run that aims at a validation loss and reports none."""

from __future__ import annotations

import warnings
from typing import Any

from rlbatch.errors import ConfigurationError


class ValidationWatch:
    """Says once that a target can be met only by validations, which nobody reports."""

    def __init__(self, target_loss: float | None) -> None:
        """Watch a run with this target; None for none."""
        self._done = target_loss is None

    def report(self, loss: Any) -> float:
        """Take a validation loss and return it as a number.

        Raises:
            ConfigurationError: It is none.
        """
        try:
            number = float(loss)
        except (TypeError, ValueError, RuntimeError):
            hint = " Does the validation return it?" if loss is None else ""
            raise ConfigurationError(
                f"Expected the validation loss as one number, got {type(loss).__name__}.{hint}"
            ) from None
        self._done = True
        return number

    def resume(self, epochs_done: float) -> None:
        """A run goes on: after its first epoch it has been warned."""
        self._done = self._done or epochs_done >= 1.0

    def begin_epoch(self, epochs_done: float) -> None:
        """Warn, where a whole epoch has passed without a validation."""
        if self._done or epochs_done < 1.0:
            return
        self._done = True
        warnings.warn(
            "rlbatch: target_loss is a validation loss, and none was reported in the first epoch. "
            "Call controller.report_validation(loss) after each validation.",
            RuntimeWarning,
            stacklevel=6,
        )
