import math

import numpy as np
import pytest

from rlbatch.policy import tools
from rlbatch.policy.base import Decision


def test_running_mean_is_the_textbook_debiased_average() -> None:
    mean = tools.mean_start(())
    for value in (1.0, 2.0, 4.0):
        mean = tools.mean_add(mean, value, 0.5)
    # weights of the past: 0.5 * (4 + 2 / 2 + 1 / 4) over their sum 0.5 * (1 + 1/2 + 1/4)
    assert float(tools.mean_value(mean)) == pytest.approx((4 + 1 + 0.25) / 1.75)


def test_one_value_is_its_own_mean_whatever_the_decay() -> None:
    mean = tools.mean_add(tools.mean_start(()), 7.0, 0.999)
    assert float(tools.mean_value(mean)) == pytest.approx(7.0)


def test_running_mean_passes_over_what_was_not_measured() -> None:
    mean = tools.mean_add(tools.mean_start((3,)), np.array([1.0, np.nan, np.inf]), 0.9)
    np.testing.assert_allclose(tools.mean_value(mean), [1.0, np.nan, np.nan])
    later = tools.mean_add(mean, np.array([np.nan, 5.0, np.nan]), 0.9)
    np.testing.assert_allclose(tools.mean_value(later), [1.0, 5.0, np.nan])


def test_decay_of_n_steps_equals_n_additions() -> None:
    once = tools.mean_add(tools.mean_add(tools.mean_start(()), 1.0, 0.9), 3.0, 0.9**5)
    often = tools.mean_add(tools.mean_start(()), 1.0, 0.9)
    for _ in range(5):
        often = tools.mean_add(often, 3.0, 0.9)
    np.testing.assert_allclose(once, often)


def test_change_to_a_size_and_to_nonsense() -> None:
    np.testing.assert_allclose(tools.change_to([256, 16, np.nan, np.inf, 0], 64), [2, -2, 0, 0, 0])


@pytest.mark.parametrize(
    ("change", "words"),
    [(0.0, "stay"), (1.0, "x2"), (-2.0, "/4"), (0.5, "x1.41"), (1e-9, "stay"), (-4e3, "/2^4000")],
)
def test_changes_in_words(change: float, words: str) -> None:
    assert tools.describe(change) == words


def test_adjusted_says_who_changed_what_to_what() -> None:
    asked = Decision(2.0, reasons=("rule: x4",))
    assert tools.adjusted(asked, 1.0, "bounds").reasons == ("rule: x4", "bounds: x2 instead of x4")
    assert tools.adjusted(asked, 2.0, "bounds").reasons == ("rule: x4",)
    assert tools.adjusted(Decision(np.ones(2)), np.zeros(2), "bounds").reasons == ()


def test_uniform_numbers_look_uniform_and_independent() -> None:
    numbers = tools.uniform(tools.seeds(3, (50, 1)), np.arange(400))
    assert numbers.min() >= 0.0
    assert numbers.max() < 1.0
    counts, _ = np.histogram(numbers, bins=20, range=(0, 1))
    chi_square = float((np.square(counts - 1000) / 1000).sum())
    assert chi_square < 43.8  # 0.999 quantile of chi-square with 19 degrees of freedom
    neighbours = [
        np.corrcoef(numbers[:, :-1].ravel(), numbers[:, 1:].ravel())[0, 1],  # along a stream
        np.corrcoef(numbers[:-1].ravel(), numbers[1:].ravel())[0, 1],  # between streams
    ]
    assert max(map(abs, neighbours)) < 4 / math.sqrt(numbers.size)


def test_uniform_is_the_published_generator() -> None:
    # SplitMix64 with seed 1234567: the known first outputs.
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    expected = [(bits >> 11) * 2.0**-53 for bits in published]
    np.testing.assert_array_equal(tools.uniform(1234567, np.arange(3)), expected)


def test_a_single_run_is_the_first_of_many() -> None:
    assert tools.seeds(5, ()) == tools.seeds(5, (7,))[0]
    assert len(set(tools.seeds(5, (1000,)).tolist())) == 1000


def test_a_reason_says_in_words_what_is_no_number() -> None:
    why = "noise {:.3g}, gain {:.0%}, loss {:.1f}"
    made = tools.decision(1.0, "rule", why, np.nan, np.inf, 2.0)

    assert made.reasons == ("rule: x2 (noise unknown, gain beyond measure, loss 2.0)",)
