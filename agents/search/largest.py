"""The largest micro-batch that fits: approached from below, so that nothing has to fail first."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from rlbatch.control.memory import MARGIN

_ROUNDS = 8  # of correction; memory that is linear in the samples needs one or two


@dataclass(frozen=True)
class Largest:
    """What fits.

    Attributes:
        size: Largest micro-batch whose pass leaves the margin free; 0 if not even one sample does.
        needed: Bytes of its pass.
        limit: Bytes that passes may take.
        margin: Share of them that is left free.
        bounded: A larger one was not looked for: it is the most that was asked for.
        tested: A pass of this size was run; if not, the line through smaller ones foretells it.
        passes: (size, bytes) of all passes that were run; None where one did not fit.
    """

    size: int
    needed: int
    limit: float
    margin: float
    bounded: bool
    tested: bool
    passes: tuple[tuple[int, int | None], ...]


def find_largest(
    needed: Callable[[int], int | None],
    limit: float,
    most: int,
    margin: float = MARGIN,
    enough: Callable[[], bool] = lambda: False,
) -> Largest:
    """Return the largest micro-batch that fits, by the straight line through what passes need.

    Sizes double as long as the line through the latest two stays within the limit; then the size
    at which the line meets the limit less the margin is tried, and corrected by what it shows.

    Args:
        needed: Runs a pass of a size and returns its bytes; None if it did not fit.
        limit: Bytes that passes may take.
        most: Largest size of interest.
        margin: Share of the limit that is to stay free.
        enough: Asked after each pass; once it returns True (the passes take too long), no larger
            one is run, and the line through the latest two says what would fit.
    """
    passes = _Passes(needed, limit, (1.0 - margin) * limit, enough)
    low, high = passes.narrowed(*passes.doubled(most))
    known = passes.known
    if known and enough():
        low = min(max(_meeting(known, passes.allowed), low), high - 1)
    return Largest(
        size=low,
        needed=known.get(low) or round(_line(known, low)),
        limit=limit,
        margin=margin,
        bounded=low == most,
        tested=low in known,
        passes=tuple(sorted(known.items())),
    )


@dataclass
class _Passes:
    """Runs passes, each size once; see `find_largest` for the first fields.

    Attributes:
        allowed: Bytes that a pass may take for its size to count as one that fits.
        known: Bytes of the passes that were run.
    """

    needed: Callable[[int], int | None]
    limit: float
    allowed: float
    enough: Callable[[], bool]
    known: dict[int, int | None] = field(default_factory=dict[int, int | None])

    def doubled(self, most: int) -> tuple[int, int]:
        """Return the largest doubled size that fits, and the smallest that is taken not to."""
        low, high, size = 0, most + 1, 1
        while size < high and not self._beyond(size) and not (self.known and self.enough()):
            if not self._fits(size):
                return low, size
            low, size = size, min(2 * size, most) if size < most else most + 1
        return low, high

    def narrowed(self, low: int, high: int) -> tuple[int, int]:
        """Return the two closer together, by passes where the line meets what is allowed."""
        for _ in range(_ROUNDS):
            # Beyond the limit nothing is run, if two passes already say that it is beyond.
            if high - low <= 1 or self.enough() or self._beyond(low + 1):
                break
            guess = min(max(_meeting(self.known, self.allowed), low + 1), high - 1)
            if self._fits(guess):
                low = guess
            else:
                high = guess
        return low, high

    def _fits(self, size: int) -> bool:
        if size not in self.known:
            self.known[size] = self.needed(size)
        value = self.known[size]
        return value is not None and value <= self.allowed

    def _beyond(self, size: int) -> bool:
        return _line(self.known, size) > self.limit


def _line(known: dict[int, int | None], size: int) -> float:
    """Return the bytes that the line through the two largest passes foretells; 0 without two."""
    fixed, slope, seen = _coefficients(known)
    return fixed + slope * size if seen > 1 else 0.0


def _meeting(known: dict[int, int | None], allowed: float) -> int:
    fixed, slope, _ = _coefficients(known)
    return int((allowed - fixed) / slope) if slope > 0 else 2**62


def _coefficients(known: dict[int, int | None]) -> tuple[float, float, int]:
    passes = sorted((size, value) for size, value in known.items() if value is not None)
    if not passes:
        return 0.0, 0.0, 0
    (size, value) = passes[-1]
    if len(passes) == 1:
        return 0.0, value / size, 1
    (smaller, less) = passes[-2]
    slope = max(value - less, 0) / (size - smaller)
    return value - slope * size, slope, len(passes)
