"""Which lines of a long log the page shows."""

from __future__ import annotations

from collections.abc import Sequence

from rlbatch.inspect.series import Point

MOST_LINES = 100_000
"""Of a run. A page of so many has 10 MB, opens in 2 seconds and zooms in 1 (docs/inspect.md)."""


def is_marked(point: Point) -> bool:
    """Whether a line is told apart on the page: the size changed, or the guard did something."""
    return point.changed or point.is_guard


def shown_places(found: Sequence[Point], most: int | None = None) -> list[int]:
    """Return the places of the lines that are shown, in their order.

    Of a log that is too long the first and the last line, marked ones, evenly spread where they
    would take more than half of the room, and others evenly spread.

    Args:
        found: All lines of a log.
        most: How many lines at most, at least 4; None: `MOST_LINES`.
    """
    most = MOST_LINES if most is None else most
    if len(found) <= most:
        return list(range(len(found)))
    marked = [place for place, point in enumerate(found) if is_marked(point)]
    kept = {0, len(found) - 1, *_spread(marked, most // 2)}
    return sorted(kept.union(_spread(range(len(found)), most - len(kept))))


def thinned(found: Sequence[Point], places: Sequence[int]) -> str:
    """Return a sentence on what is left out; empty where nothing is."""
    if len(places) == len(found):
        return ""
    marked = sum(map(is_marked, found))
    with_marked = sum(is_marked(found[place]) for place in places)
    all_of = "all" if with_marked == marked else f"{with_marked:,} of the"
    return (
        f"The log has {len(found):,} lines, too many for a page: {len(places):,} of them are "
        f"shown, evenly spread, with {all_of} {marked:,} changes and events. The summary is of all "
        "lines, and rlbatch inspect shows each."
    )


def _spread(places: Sequence[int], most: int) -> Sequence[int]:
    if len(places) <= most:
        return places
    return [places[number * len(places) // most] for number in range(most)]
