import io
import json
from enum import IntEnum, StrEnum

import numpy as np
import pytest
import torch

from rlbatch.errors import ConfigurationError
from rlbatch.policy.state import pack_state, unpack_state


def test_every_bit_survives_json() -> None:
    rng = np.random.default_rng(0)
    state = (
        rng.standard_normal((2, 3)),
        (np.array(2**64 - 1, dtype=np.uint64), np.float32(0.1), np.zeros((0, 4), np.int64)),
        np.array([np.nan, np.inf, -0.0]),
        np.array([True, False]),
        (3, 0.1, True, None, "x"),
        (),
    )
    restored = unpack_state(json.loads(json.dumps(pack_state(state))))
    for before, after in zip(state[0], restored[0], strict=True):
        np.testing.assert_array_equal(before, after)
    for before, after in zip(state[1], restored[1], strict=True):
        assert after.dtype == before.dtype
        assert after.shape == before.shape
        np.testing.assert_array_equal(before, after)
    np.testing.assert_array_equal(restored[2], state[2])
    assert np.signbit(restored[2][2])
    assert restored[3].dtype == np.bool_
    assert restored[4:] == ((3, 0.1, True, None, "x"), ())


class Mood(StrEnum):
    CALM = "calm"


class Level(IntEnum):
    HIGH = 7


@pytest.mark.parametrize(
    ("number", "plain"),
    [
        (np.float64(0.1), 0.1),
        (np.float64("nan"), float("nan")),
        (np.str_("text"), "text"),
        (Mood.CALM, "calm"),
        (Level.HIGH, 7),
        (True, True),
    ],
)
def test_what_only_passes_for_a_plain_value_becomes_one(number: object, plain: object) -> None:
    for packed in (pack_state(number), pack_state((1, (number,)))[1][0]):
        assert type(packed) is type(plain)
        assert packed == pytest.approx(plain, nan_ok=True)


def test_a_packed_state_can_be_loaded_without_running_code() -> None:
    state = (np.float64(0.1), np.float32(0.1), np.bool_(True), np.arange(3.0), Mood.CALM, [2, ()])
    file = io.BytesIO()
    torch.save(pack_state(state), file)
    file.seek(0)
    restored = unpack_state(torch.load(file, weights_only=True))
    assert restored[0] == 0.1
    assert restored[1] == np.float32(0.1)
    assert restored[4:] == ("calm", (2, ()))


@pytest.mark.parametrize(
    "odd",
    [object(), {"a": 1}, np.array(["text"]), {1, 2}, np.zeros(2, complex), np.longdouble(0.1)],
)
def test_other_things_are_refused(odd: object) -> None:
    with pytest.raises(ConfigurationError, match=r"made of tuples.*got"):
        pack_state((1, odd))
