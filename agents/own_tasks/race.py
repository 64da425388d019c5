"""Which candidates are worth more runs: those far behind drop out, which leaves more for others."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from rlbatch.agents.own_tasks.budget import FIRST_ROUNDS, MOST_ROUNDS
from rlbatch.agents.own_tasks.validation import Candidate, Validation

_FAR_BEHIND = math.log(1.1)
"""Mean of log(ratio / the best one's) from which a candidate is given up, however few its runs."""

_SURE_ROUNDS = 4
"""Least rounds after which a race with a winner is over: whoever looks after each round is the more
easily deceived by luck."""


def race(
    validation: Validation,
    base: Candidate,
    candidates: Sequence[Candidate],
    rounds: int,
    run: Callable[[Sequence[Candidate], int], None],
) -> int:
    """Run candidates through more rounds while it is open which of them is best.

    Args:
        validation: The results, of `FIRST_ROUNDS` of all of them.
        base: What is kept unless another is surely better; stays in the race.
        candidates: The others.
        rounds: Of one candidate, all together, that may be run.
        run: Runs candidates through so many rounds.

    Returns:
        The rounds that those have which did not drop out.
    """
    made = FIRST_ROUNDS
    field = [base, *hopeful(validation, base, candidates, made)]
    while made < MOST_ROUNDS and len(field) <= rounds and not _is_over(validation, field, made):
        rounds -= len(field)
        made += 1
        run(field, made)
        field = [base, *hopeful(validation, base, field[1:], made)]
    return made


def hopeful(
    validation: Validation, base: Candidate, candidates: Sequence[Candidate], rounds: int
) -> list[Candidate]:
    """Return those that are not far behind the best, nor surely worse than it, best first.

    Args:
        validation: With so many rounds of all of them.
        base: May be the best, too; is not returned.
        candidates: The others.
        rounds: To compare by.
    """
    ordered = validation.ranked([base, *candidates], rounds)

    def may_win(one: Candidate) -> bool:
        mean, error = validation.behind(one, ordered[0], rounds)
        return mean < _FAR_BEHIND and mean - 2.0 * error <= 0.0

    return [one for one in ordered if one is not base and may_win(one)]


def _is_over(validation: Validation, field: Sequence[Candidate], rounds: int) -> bool:
    """Whether more rounds could not change what is kept."""
    base, *others = field
    if not others:
        return True
    won = validation.surest(base, others, rounds)
    return rounds >= _SURE_ROUNDS and others == [won]
