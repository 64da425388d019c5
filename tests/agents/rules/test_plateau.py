import numpy as np
import pytest

from rlbatch.agents.rules.plateau import Plateau
from rlbatch.errors import ConfigurationError
from rlbatch.observation import OBSERVATION_SIZE
from rlbatch.policy.base import Policy
from rlbatch.testing import simple_signals
from rlbatch.testing.policy_contract import PolicyContract

NOTHING = np.zeros(OBSERVATION_SIZE, np.float32)
NAN = float("nan")


class TestContract(PolicyContract):
    def make_policy(self) -> Policy:
        return Plateau(patience=1)


def changes(policy: Plateau, train: list[float], val: list[float] | None = None) -> list[float]:
    state, asked = policy.initial_state(), list[float]()
    for train_loss, val_loss in zip(train, val or [NAN] * len(train), strict=True):
        signals = simple_signals(train_loss=train_loss, val_loss=val_loss)
        decision, state = policy.decide(NOTHING, signals, state)
        asked.append(float(decision.log2_change))
    return asked


@pytest.mark.parametrize(
    ("patience", "threshold", "losses", "expected"),
    [
        (0, 0.0, [1, 1, 1], [0, 1, 1]),
        (1, 0.0, [1, 1, 1, 1, 1], [0, 0, 1, 0, 1]),
        (1, 0.0, [1, 1, 0.9, 1, 1, 1], [0, 0, 0, 0, 1, 0]),
        (1, 0.0, [1, 2, 3, 0.5, 2, 3], [0, 0, 1, 0, 0, 1]),  # the best stays the best
        (0, 0.1, [1, 0.95, 0.89, 0.85], [0, 1, 0, 1]),
        (0, 0.1, [-1, -1.05, -1.2], [0, 1, 0]),
        (0, 0.0, [1, NAN, NAN, 1, np.inf], [0, 0, 0, 1, 0]),  # no loss, no check
        (2, 0.0, [5, 4, 3, 2, 1], [0, 0, 0, 0, 0]),
    ],
)
def test_decision_sequences(
    patience: int, threshold: float, losses: list[float], expected: list[float]
) -> None:
    assert changes(Plateau(2.0, patience, threshold), losses) == expected


def test_agrees_with_the_learning_rate_scheduler_of_torch() -> None:
    import torch

    rng = np.random.default_rng(0)
    losses = np.exp(-np.arange(200) / 40) + 0.05 * rng.standard_normal(200) + 1
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, factor=0.5, patience=4, threshold=1e-3, eps=0.0
    )
    expected: list[float] = []
    for loss in losses.tolist():
        before = optimizer.param_groups[0]["lr"]
        scheduler.step(loss)
        expected.append(float(optimizer.param_groups[0]["lr"] < before))
    assert sum(expected) > 3
    assert changes(Plateau(2.0, 4, 1e-3), losses.tolist()) == expected


def test_validation_loss_takes_over_once_there_is_one() -> None:
    policy = Plateau(patience=0)
    train = [1.0, 0.9, 0.8, 0.7, 0.6, 0.5]
    val = [NAN, 2.0, NAN, 2.0, NAN, 1.0]
    # the first validation loss is compared with nothing; chunks without one are no checks
    assert changes(policy, train, val) == [0, 0, 0, 1, 0, 0]


def test_factor_is_the_growth() -> None:
    assert changes(Plateau(8.0, 0), [1, 1]) == [0, 3]


@pytest.mark.parametrize("settings", [{"factor": 0.0}, {"patience": -1}, {"threshold": 1.0}])
def test_impossible_settings_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(ConfigurationError, match=f"{next(iter(settings))} must"):
        Plateau(**settings)  # pyright: ignore[reportArgumentType]
