from dataclasses import dataclass
from typing import Any, Literal

import pytest

from rlbatch.errors import ConfigurationError
from rlbatch.policy.parameters import parse_parameters


@dataclass(frozen=True)
class Rule:
    theta: float = 0.6
    patience: int = 10
    follow: bool = False
    batch_size: int | None = None
    metric: str = "loss"
    mode: Literal["up", "down", 2] | None = None

    needs_gradient_noise = True


@dataclass(frozen=True)
class Bare:
    pass


def factory(rate: float, *more: int, name: str = "x", **others: int) -> None:
    """A plug-in may be a function."""


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("", {}),
        ("0.3", {"theta": 0.3}),
        ("0.3,patience=4", {"theta": 0.3, "patience": 4}),
        ("theta=1,follow=true", {"theta": 1.0, "follow": True}),
        (" patience = 7 , follow = No ", {"patience": 7, "follow": False}),
        ("batch_size=64", {"batch_size": 64}),
        ("batch_size=none", {"batch_size": None}),
        ("metric=val", {"metric": "val"}),
        ("metric=none", {"metric": "none"}),
        ("mode=down", {"mode": "down"}),
        ("mode=2", {"mode": 2}),
        ("mode=None", {"mode": None}),
    ],
)
def test_readable_parameters(text: str, values: dict[str, Any]) -> None:
    parsed = parse_parameters("rule", Rule, text)
    assert parsed == values
    assert [type(value) for value in parsed.values()] == [type(v) for v in values.values()]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("thta=0.3", r"rule has no parameter 'thta'\. rule accepts theta \(float, default 0\.6\)"),
        ("needs_gradient_noise=no", "no parameter 'needs_gradient_noise'"),
        ("0.3,4", "no parameter '4'"),
        ("=3", "no parameter ''"),
        ("theta=big", "theta cannot be 'big'"),
        ("patience=2.5", "patience cannot be '2.5'"),
        ("follow=perhaps", r"follow cannot be 'perhaps'.*follow \(bool"),
        ("batch_size=large", r"batch_size \(int or none, default None\)"),
        ("mode=Up", r"mode cannot be 'Up'.*mode \(up or down or 2 or none, default None\)"),
        ("theta=1,theta=2", "theta is given twice"),
        ("theta=1,", "no parameter ''"),
    ],
)
def test_unreadable_parameters(text: str, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        parse_parameters("rule", Rule, text)


def test_rules_without_parameters_and_functions() -> None:
    assert parse_parameters("bare", Bare, "") == {}
    with pytest.raises(ConfigurationError, match="bare accepts no parameters"):
        parse_parameters("bare", Bare, "3")
    assert parse_parameters("f", factory, "2,name=y") == {"rate": 2.0, "name": "y"}
    with pytest.raises(
        ConfigurationError, match=r"f needs a value for rate, as in f:rate=\.\.\. f acc"
    ):
        parse_parameters("f", factory, "name=y")
    with pytest.raises(ConfigurationError, match=r"rate \(float\), name \(str, default x\)"):
        parse_parameters("f", factory, "speed=2")
    with pytest.raises(ConfigurationError, match="no parameter 'others'"):
        parse_parameters("f", factory, "2,others=1")
