"""Divided Keras batches have the gradient of the plain `fit`, whatever their losses are means of.

A process has one backend: `test_keras.py` runs this file in a process for each.
"""

from __future__ import annotations

import copy
import functools
import os

import pytest

if "RLBATCH_TEST_KERAS" not in os.environ:
    pytest.skip("run by test_keras.py, once a backend", allow_module_level=True)

from typing import Any

import keras
import numpy as np

from rlbatch.control.guard import GuardConfig
from rlbatch.errors import ConfigurationError, RlbatchError
from rlbatch.integrations.keras import BatchSizeControl
from rlbatch.testing import ScriptedPolicy

TENSORFLOW = keras.backend.backend() == "tensorflow"
layers: Any = keras.layers
Losses: Any = keras.losses
Callback: Any = keras.callbacks.Callback
SAMPLES, BASE, PLACES, TOKENS = 37, 8, 5, 7

pytestmark = [
    pytest.mark.filterwarnings("ignore:`shuffle=True` was passed:UserWarning"),
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]

rng = np.random.default_rng(0)
LENGTHS = rng.integers(0, PLACES + 1, (SAMPLES, 1))
LENGTHS[9:12] = 0  # a part of a batch in which nothing counts
IDS = np.where(np.arange(PLACES) < LENGTHS, rng.integers(1, TOKENS, (SAMPLES, PLACES)), 0)
LABELS = np.where(IDS > 0, rng.integers(1, TOKENS, IDS.shape), 0)
X = rng.normal(size=(SAMPLES, 6)).astype("float32")
KIND = rng.integers(0, 4, SAMPLES)
WEIGHTS = rng.uniform(0.1, 9.0, SAMPLES).astype("float32")


def sequences(loss: Any, *, mask: bool) -> Any:
    keras.utils.set_random_seed(0)
    stack = [layers.Embedding(TOKENS, 4, mask_zero=mask), layers.Dense(TOKENS)]
    model = keras.Sequential([keras.Input((PLACES,), dtype="int32"), *stack])
    model.compile(keras.optimizers.SGD(0.5), loss)
    return model


def classes(loss: Any = "sparse_categorical_crossentropy", **compiled: Any) -> Any:
    keras.utils.set_random_seed(0)
    penalty = keras.regularizers.L2(0.01)
    head = layers.Dense(4, "softmax", kernel_regularizer=penalty)
    model = keras.Sequential([keras.Input((6,)), layers.Dense(5, "tanh"), head])
    model.compile(keras.optimizers.SGD(0.5), loss, **compiled)
    return model


def entropy(**options: Any) -> Any:
    return Losses.SparseCategoricalCrossentropy(from_logits=True, **options)


def weighted_mean() -> Any:
    return Losses.SparseCategoricalCrossentropy(reduction="mean_with_sample_weight")


# How a model is made, what it is fitted to, and what else `fit` gets.
CASES: dict[str, tuple[Any, tuple[Any, ...], dict[str, Any]]] = {
    "a mask": (lambda: sequences(entropy(), mask=True), (IDS, LABELS), {}),
    "labels left out": (
        lambda: sequences(entropy(ignore_class=0), mask=False), (IDS, LABELS), {}
    ),
    "both": (lambda: sequences(entropy(ignore_class=2), mask=True), (IDS, LABELS), {}),
    "a mask and weights": (
        lambda: sequences(entropy(), mask=True), (IDS, LABELS, np.tile(WEIGHTS[:, None], 5)), {}
    ),
    "sample weights": (classes, (X, KIND, WEIGHTS), {}),
    "a mean by sample weights": (lambda: classes(weighted_mean()), (X, KIND, WEIGHTS), {}),
    "class weights": (classes, (X, KIND), {"class_weight": {0: 1.0, 1: 20.0, 2: 0.1, 3: 3.0}}),
}  # fmt: skip


def make_control(limit: int | None, policy: Any = "fixed", **settings: Any) -> BatchSizeControl:
    return BatchSizeControl(
        BASE, policy, cost="samples", lr_coupling="none", micro_batch_size=limit,
        min_batch_size=1, **settings,
    )  # fmt: skip


@functools.cache
def plain_weights(case: str) -> list[Any]:
    """Return the weights of a case's model after its `fit` without a controller."""
    make, data, more = CASES[case]
    plain = make()
    names = dict(zip(("x", "y", "sample_weight"), data, strict=False))
    plain.fit(**names, batch_size=BASE, epochs=2, shuffle=False, verbose=0, **more)
    return plain.get_weights()


@pytest.mark.parametrize("limit", [None, 3, 4])
@pytest.mark.parametrize("case", CASES)
def test_weights_are_those_of_the_plain_fit(case: str, limit: int | None) -> None:
    if case == "class weights" and not TENSORFLOW:
        pytest.skip("Keras refuses class_weight with a DataLoader")
    make, data, more = CASES[case]
    plain = plain_weights(case)

    control, model = make_control(limit), make()
    model.fit(
        control.dataset(*data, shuffle=False), epochs=2, verbose=0, callbacks=[control], **more
    )
    assert control.components["traces"]["part"] > 0 or limit is None
    start = make()
    for a, b, c in zip(model.get_weights(), plain, start.get_weights(), strict=True):
        moved = float(np.abs(b - c).max())
        assert float(np.abs(a - b).max()) < 2e-5 * max(moved, 1.0)  # of float32
        assert moved > 1e-3


def test_the_loss_of_a_divided_masked_batch_is_told_whole() -> None:
    chunks = {f"{name}_chunk_steps": 99 for name in ("first", "min", "max")}
    losses: list[list[float]] = []
    for limit in (None, 3):
        control, model = make_control(limit, **chunks), CASES["a mask"][0]()
        data = control.dataset(IDS, LABELS, shuffle=False)
        model.fit(data, epochs=1, verbose=0, callbacks=[control])
        losses.append(control.state_dict()["control_loop"]["monitor"]["losses"])
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-5)


def test_several_losses_with_masks_of_their_own_are_refused() -> None:
    keras.utils.set_random_seed(0)
    ids: Any = keras.Input((PLACES,), dtype="int32")
    inner = layers.Embedding(TOKENS, 4, mask_zero=True)(ids)
    model: Any = keras.Model(ids, [layers.Dense(TOKENS)(inner), layers.Dense(TOKENS)(inner)])
    model.compile("sgd", [entropy(), entropy()])
    control = make_control(3)
    data = control.dataset(IDS, (LABELS, LABELS), shuffle=False)
    with pytest.raises(ConfigurationError, match="2 losses that are means over masks"):
        model.fit(data, epochs=1, verbose=0, callbacks=[control])
    whole = make_control(None)
    model.fit(whole.dataset(IDS, (LABELS, LABELS)), epochs=1, verbose=0, callbacks=[whole])


# -- roll-backs and states --


class Spoil(Callback):
    """Damages the weights in one step behind a change, and notes what is restored."""

    def __init__(self, control: Any, queue: Any) -> None:
        super().__init__()
        self.control, self.queue = control, queue
        self.start: Any = None  # of the chunk
        self.before: Any = None
        self.after: Any = None

    def variables(self) -> Any:
        return [np.array(v.numpy()) for v in self.model.optimizer.variables]

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        if self.control.components["chunk"][0] == 0:
            self.start = self.variables()
        elif self.before is None and self.control.batch_size == 4 * BASE:
            self.before, self.queue[0] = self.start, 7.0
            kernel = self.model.trainable_weights[0]
            kernel.assign(kernel * np.nan)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if self.control.components["rollbacks"] and self.after is None:
            self.after = self.variables()


def test_a_roll_back_restores_the_moving_average_and_what_was_named() -> None:
    keras.utils.set_random_seed(0)
    model: Any = keras.Sequential([keras.Input((6,)), layers.Dense(1)])
    optimizer = keras.optimizers.SGD(0.01, use_ema=True, ema_momentum=0.5)
    model.compile(optimizer, "mse", run_eagerly=True)
    policy = ScriptedPolicy((0.0, 0.0, 1.0, 1.0))
    chunks = {f"{name}_chunk_steps": 2 for name in ("first", "min", "max")}
    control = make_control(None, policy, guard=GuardConfig(), max_batch_size=64, **chunks)
    queue = np.zeros(1)

    def restore(saved: Any) -> None:
        queue[:] = saved

    control.on_rollback(queue.copy, restore)
    spoil = Spoil(control, queue)
    target = X.sum(1, keepdims=True)
    data = control.dataset(X, target, shuffle=False)
    with pytest.warns(RuntimeWarning, match="was not finite"):
        model.fit(data, epochs=6, verbose=0, callbacks=[control, spoil])
    assert control.components["rollbacks"] == 1
    assert queue[0] == 0.0
    assert spoil.before is not None
    assert spoil.after is not None
    assert len(spoil.before) > 2  # the averages are among them
    for before, after in zip(spoil.before, spoil.after, strict=True):
        np.testing.assert_array_equal(after, before)
    assert all(bool(np.isfinite(w).all()) for w in model.get_weights())


def scripted() -> BatchSizeControl:
    return make_control(None, ScriptedPolicy((1.0, -1.0)))


def fit_classes(control: Any, data: Any, epochs: int = 2) -> Any:
    model = classes()
    model.fit(data, epochs=epochs, verbose=0, callbacks=[control])
    return model


@pytest.fixture(scope="module")
def saved() -> Any:
    """Return the state after an epoch."""
    control = scripted()
    fit_classes(control, control.dataset(X, KIND), 1)
    return control.state_dict()


@pytest.fixture(scope="module")
def fresh() -> tuple[int, list[Any]]:
    """Return the steps of a run that nothing was loaded into, and the weights after it."""
    control = scripted()
    whole = fit_classes(control, control.dataset(X, KIND))
    return control.steps, whole.get_weights()


@pytest.mark.parametrize("damage", ["policy", "missing", "fit"])
def test_a_state_that_is_refused_leaves_the_control_as_it_was(
    damage: str, saved: Any, fresh: tuple[int, list[Any]]
) -> None:
    state = copy.deepcopy(saved)
    if damage == "policy":
        state["control_loop"]["engine"] = {"policy": 3}
    elif damage == "missing":
        del state["loader"]["sampler"]
    else:
        state["fit"] = {}

    control = scripted()
    data = control.dataset(X, KIND)

    def resume() -> None:
        control.load_state_dict(state)
        fit_classes(control, data)

    with pytest.raises(RlbatchError, match="state"):
        resume()
    model = fit_classes(control, data)
    steps, weights = fresh
    assert control.steps == steps
    assert control.samples_seen == 2 * SAMPLES
    for a, b in zip(model.get_weights(), weights, strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_batch_size_is_a_number_of_samples() -> None:
    for wrong in ("32", 0, 2.5, True):
        with pytest.raises(ConfigurationError, match="batch_size must be a whole number"):
            BatchSizeControl(wrong)  # pyright: ignore[reportArgumentType]


def squares(true: Any, predicted: Any) -> Any:
    ops: Any = keras.ops
    kind = ops.one_hot(ops.cast(ops.reshape(true, (-1,)), "int32"), 4)
    return ops.mean(ops.square(kind - predicted), axis=-1)


def mean_of_squares(true: Any, predicted: Any) -> Any:
    return keras.ops.mean(squares(true, predicted))


def root_of_squares(true: Any, predicted: Any) -> Any:
    return keras.ops.sqrt(mean_of_squares(true, predicted))


def sum_of_squares(true: Any, predicted: Any) -> Any:
    return keras.ops.sum(squares(true, predicted))


def fit_in_parts(loss: Any) -> Any:
    control, model = make_control(4), classes(loss)
    data = control.dataset(X, KIND, shuffle=False)
    model.fit(data, epochs=1, verbose=0, callbacks=[control])
    return model


def test_losses_whose_parts_do_not_add_up_are_said_without_a_trace() -> None:
    for loss in (squares, mean_of_squares):  # a warning would be an error
        fit_in_parts(loss)
    found: list[Any] = []
    for loss in (root_of_squares, sum_of_squares):
        with pytest.warns(RuntimeWarning, match="its parts do not add up"):
            found.append(fit_in_parts(loss))
    # The look at them leaves no trace: the sum's gradient is that of the mean times its parts.
    assert all(np.isfinite(w).all() for model in found for w in model.get_weights())


def test_sums_and_pairs_are_said_or_refused() -> None:
    model = classes(Losses.SparseCategoricalCrossentropy(reduction="sum"))
    control = make_control(None, ScriptedPolicy((1.0,)))
    data = control.dataset(X, KIND)
    with pytest.warns(RuntimeWarning, match="with the batch size its gradient grows"):
        model.fit(data, epochs=1, verbose=0, callbacks=[control])
    with pytest.raises(ConfigurationError, match="Circle compares the samples"):
        fit_in_parts(Losses.Circle())


def test_frozen_weights_are_not_copied_and_statistics_are() -> None:
    keras.utils.set_random_seed(0)
    frozen, norm = layers.Dense(50, "tanh"), layers.BatchNormalization()
    stack = [keras.Input((6,)), frozen, norm, layers.Dense(4, "softmax")]
    model = keras.Sequential(stack)
    frozen.trainable = False
    model.compile(keras.optimizers.Adam(0.01), "sparse_categorical_crossentropy")
    chunks = {f"{name}_chunk_steps": 2 for name in ("first", "min", "max")}
    control = make_control(None, ScriptedPolicy((0.5,) * 9), guard=GuardConfig(), **chunks)
    data = control.dataset(X, KIND)
    fit: Any = model.fit  # its annotations forget 0
    fit(data, epochs=4, verbose=0, callbacks=[control])
    copied = control.state_dict()["control_loop"]["guard"]["copy"]["tensors"]
    shapes = [tuple(tensor.shape) for tensor in copied]
    assert (6, 50) not in shapes
    # Scale, shift and two statistics; Adam's two moments of scale, shift. The bias is frozen.
    assert shapes.count((50,)) == 8
    assert shapes.count((50, 4)) == 3
