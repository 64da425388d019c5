import json

import numpy as np
import pytest

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


@pytest.mark.parametrize("odd", [object(), {"a": 1}, np.array(["text"]), {1, 2}])
def test_other_things_are_refused(odd: object) -> None:
    with pytest.raises(ConfigurationError, match=r"made of tuples.*got"):
        pack_state((1, odd))
