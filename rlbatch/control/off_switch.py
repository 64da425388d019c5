"""Turns a controller off from outside of the training's process."""

from __future__ import annotations

import signal
from types import FrameType
from typing import Any

from rlbatch.errors import ConfigurationError


class SignalSwitch:
    """A `ControllerConfig.off_when` that says yes once the process has got a signal.

        controller = rlbatch.BatchController(..., off_when=SignalSwitch(signal.SIGUSR1))

    Then `kill -USR1 PID` ends the control with the next decision, and the training goes on at the
    user's batch size. A handler that was there before is called as well.

    Attributes:
        received: The signal has come.
    """

    def __init__(self, number: int) -> None:
        """Listen to a signal, from the main thread.

        Args:
            number: For example `signal.SIGUSR1`.

        Raises:
            ConfigurationError: Nobody can listen to it, or not from here.
        """
        self.received = False
        try:
            self._before: Any = signal.signal(number, self._receive)
        except (ValueError, OSError) as error:
            raise ConfigurationError(
                f"Expected a signal that this thread can listen to, got {number}: {error}. Make "
                "the switch in the main thread, for example of signal.SIGUSR1."
            ) from error
        self._number = number

    def __call__(self) -> bool:
        """Return whether the signal has come."""
        return self.received

    def close(self) -> None:
        """Put back the handler from before."""
        signal.signal(self._number, self._before)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received = True
        if callable(self._before):
            self._before(number, frame)
