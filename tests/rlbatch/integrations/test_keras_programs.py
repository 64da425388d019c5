"""Programs as people write them: what `fit` does with them is right, said aloud or refused.

A process has one backend: `test_keras.py` runs this file in a process for each.
"""

from __future__ import annotations

import os

import pytest

if "RLBATCH_TEST_KERAS" not in os.environ:
    pytest.skip("run by test_keras.py, once a backend", allow_module_level=True)

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import torch
from torch.utils.data import DataLoader, TensorDataset

from rlbatch.control.guard import GuardConfig
from rlbatch.errors import ConfigurationError, DeliveryError
from rlbatch.integrations.keras import BatchSizeControl
from rlbatch.log.episode_log import read_episode
from rlbatch.testing import ScriptedPolicy

TENSORFLOW = keras.backend.backend() == "tensorflow"
ops: Any = keras.ops
layers: Any = keras.layers
optimizers: Any = keras.optimizers
Callback: Any = keras.callbacks.Callback
SAMPLES, BASE = 44, 8
GROW = ScriptedPolicy((1.0, 0.0, -2.0, 1.5))

pytestmark = [
    pytest.mark.filterwarnings("ignore:`shuffle=True` was passed:UserWarning"),
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]

rng = np.random.default_rng(0)
X = rng.normal(size=(SAMPLES, 6)).astype("float32")
Y = np.sin(X.sum(1, keepdims=True)).astype("float32")
WEIGHTS = rng.uniform(0.2, 3.0, SAMPLES).astype("float32")


def network(optimizer: Any = "sgd", loss: Any = "mse", *more: Any) -> Any:
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((6,)), layers.Dense(5, "tanh"), *more, layers.Dense(1)])
    model.compile(optimizer, loss)
    return model


def control(policy: Any = GROW, **settings: Any) -> BatchSizeControl:
    chunks: dict[str, Any] = {f"{name}_chunk_steps": 2 for name in ("first", "min", "max")}
    limits: dict[str, Any] = {
        "cost": "samples",
        "min_batch_size": 2,
        "max_batch_size": 32,
        "guard": None,
    }
    return BatchSizeControl(BASE, policy, **{**chunks, **limits, **settings})


def fit(model: Any, c: BatchSizeControl, data: Any = None, epochs: int = 1, **more: Any) -> Any:
    data = c.dataset(X, Y) if data is None else data
    callbacks = [c, *more.pop("callbacks", [])]
    return model.fit(data, epochs=epochs, verbose=0, shuffle=False, callbacks=callbacks, **more)


def assert_same_weights(left: Any, right: Any) -> None:
    for a, b in zip(left.get_weights(), right.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


# -- learning rates --


class Decays(Callback):
    """Moves the weight decay by batches."""

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.model.optimizer.weight_decay += 1e-4


def test_a_weight_decay_by_steps_is_warned_about() -> None:
    model = network(optimizers.AdamW(0.01, weight_decay=1e-3))
    with pytest.warns(RuntimeWarning, match="The weight decay was changed between two batches"):
        fit(model, control(), epochs=2, callbacks=[Decays()])


@pytest.fixture
def half_precision() -> Iterator[None]:
    keras.config.set_dtype_policy("mixed_float16")
    yield
    keras.config.set_dtype_policy("float32")


@pytest.mark.usefixtures("half_precision")
def test_a_schedule_waits_where_a_scaled_loss_leaves_out_steps() -> None:
    """As in Keras, whose optimizer counts the steps that it makes; resumed, too."""

    def make() -> Any:
        rate = optimizers.schedules.ExponentialDecay(0.5, 3, 0.5)
        return network(optimizers.LossScaleOptimizer(optimizers.SGD(rate), initial_scale=2.0**26))

    plain, whole = make(), make()
    plain.fit(X, Y, batch_size=BASE, epochs=3, verbose=0, shuffle=False)
    c = control("fixed")
    data = c.dataset(X, Y, shuffle=False)
    fit(whole, c, data, epochs=2)
    state = c.state_dict()
    left_out = 12 - int(ops.convert_to_numpy(whole.optimizer.iterations))
    assert left_out == state["fit"]["skipped"] > 0
    c = control("fixed")  # one that knows nothing but the state, for the same weights
    data = c.dataset(X, Y, shuffle=False)
    c.load_state_dict(state)
    fit(whole, c, data)
    assert c.state_dict()["fit"]["skipped"] == left_out
    assert_same_weights(whole, plain)


@pytest.mark.usefixtures("half_precision")
def test_steps_that_are_undone_are_not_left_out() -> None:
    """A roll-back puts the optimizer's count back, and the schedule goes on by samples."""

    class Spoils(Callback):
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            if c.steps == 13:
                kernel = self.model.layers[-1].kernel
                kernel.assign(kernel * 100.0)  # nothing overflows by it

    rate = optimizers.schedules.ExponentialDecay(0.01, 3, 0.5)
    model = network(optimizers.LossScaleOptimizer(optimizers.SGD(rate), initial_scale=8.0))
    c = control(ScriptedPolicy((1.0, -1.0) * 20), guard=GuardConfig())
    with pytest.warns(RuntimeWarning, match="undone"):
        fit(model, c, epochs=6, callbacks=[Spoils()])
    assert c.components["rollbacks"] > 0
    assert int(ops.convert_to_numpy(model.optimizer.iterations)) < c.steps
    assert c.state_dict()["fit"]["skipped"] == 0


def test_the_run_is_as_long_as_the_epochs_that_are_left(tmp_path: Path) -> None:
    c = control("fixed", log_dir=tmp_path)
    with pytest.warns(RuntimeWarning, match="fit begins at epoch 7"):
        fit(network(), c, epochs=9, initial_epoch=7)
    assert read_episode(tmp_path).run["context"]["planned_samples"] == 2 * SAMPLES


@pytest.mark.skipif(not TENSORFLOW, reason="torch.compile takes a minute; see test_step_planner.py")
def test_a_compiled_run_is_the_plain_one_to_rounding() -> None:
    """With an epoch's last batch, of four samples, at the user's own rate."""
    plain, ours = (network(optimizers.Adam(0.01)) for _ in range(2))
    for model in (plain, ours):
        model.compile(model.optimizer, "mse", jit_compile=True)
    plain.fit(X, Y, batch_size=BASE, epochs=2, verbose=0, shuffle=False)
    c = control("fixed", lr_coupling="sqrt")
    fit(ours, c, c.dataset(X, Y, shuffle=False), epochs=2)
    for a, b in zip(plain.get_weights(), ours.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


# -- losses --


class Untold(keras.Model):
    """Whose methods take no `training`, and whose loss is a sum."""

    def __init__(self) -> None:
        super().__init__()
        self.head = layers.Dense(1)

    def call(self, x: Any) -> Any:
        return self.head(x)

    def compute_loss(
        self, x: Any = None, y: Any = None, y_pred: Any = None, sample_weight: Any = None
    ) -> Any:
        return ops.sum(ops.square(y - y_pred))


def untold() -> Any:
    keras.utils.set_random_seed(0)
    model = Untold()
    model.compile("sgd")
    return model


class Coded(keras.Model):
    """An autoencoder with a term of its own, and noise in its code where it is asked for."""

    def __init__(self, term: Any, noise: float = 0.0) -> None:
        super().__init__()
        self.code, self.head = layers.Dense(3, "tanh"), layers.Dense(6)
        self.term, self.noise = term, noise
        self.seeds = keras.random.SeedGenerator(1)

    def call(self, x: Any, training: bool = False) -> Any:
        code = self.code(x)
        self.add_loss(self.term(code))
        if self.noise:
            code = code + self.noise * keras.random.normal(ops.shape(code), seed=self.seeds)
        return self.head(code)


def coded(term: Any, noise: float = 0.0) -> Any:
    keras.utils.set_random_seed(0)
    model = Coded(term, noise)
    model.compile("sgd", "mse")
    return model


def compared(true: Any, predicted: Any) -> Any:
    """Each sample with all others, as contrastive losses do."""
    close = -ops.square(predicted - ops.transpose(predicted))
    return ops.mean(ops.logsumexp(close, 1) - ops.diagonal(close))


@pytest.mark.parametrize(
    "make",
    [
        lambda: coded(lambda code: 0.1 * ops.sum(ops.square(code))),
        lambda: network("sgd", lambda true, predicted: ops.sum(ops.square(true - predicted))),
        untold,
    ],
    ids=["add_loss", "function", "compute_loss"],
)
def test_a_sum_in_an_undivided_batch_is_said(make: Any) -> None:
    model = make()
    c = control(ScriptedPolicy((1.0,)), lr_coupling="none")
    with pytest.warns(RuntimeWarning, match="with the batch size its gradient grows"):
        fit(model, c, c.dataset(X, X if isinstance(model, Coded) else Y))


@pytest.mark.parametrize("micro_batch_size", [None, 4])
def test_means_and_random_losses_are_not(micro_batch_size: int | None) -> None:
    """And what looks at them leaves no trace in the states of random generators."""
    penalised = layers.Dense(4, kernel_regularizer="l2", activity_regularizer="l2")
    makes = [lambda: network("sgd", "mse", penalised)]
    makes += [] if micro_batch_size else [lambda: network("sgd", compared)]
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        for make in makes:
            fit(make(), control(micro_batch_size=micro_batch_size))
        model = coded(lambda code: ops.mean(ops.square(code)), noise=0.5)
        c = control(ScriptedPolicy((0.0,)), micro_batch_size=micro_batch_size)
        fit(model, c, c.dataset(X, X))
    passes = 6 if micro_batch_size is None else 11
    assert int(ops.convert_to_numpy(model.seeds.state)[1]) == passes


def test_a_term_times_0_changes_nothing() -> None:
    def trained(factor: Any, micro_batch_size: int | None) -> Any:
        term = (
            (lambda code: factor * ops.sum(code)) if factor is not None else lambda _: ops.zeros(())
        )
        model = coded(term)
        c = control(micro_batch_size=micro_batch_size)
        fit(model, c, c.dataset(X, X))
        return model

    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        for limit in (None, 4):
            assert_same_weights(trained(0.0, limit), trained(None, limit))


def test_batch_normalisation_in_smaller_parts_is_said() -> None:
    batch, layer = layers.BatchNormalization, layers.LayerNormalization
    with pytest.warns(RuntimeWarning, match="batch normalisation then goes over 4 samples"):
        fit(network("sgd", "mse", batch()), control("fixed", micro_batch_size=4))
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        fit(network("sgd", "mse", batch()), control("fixed", micro_batch_size=8))
        fit(network("sgd", "mse", layer()), control("fixed", micro_batch_size=4))


# -- train_step --


class OwnStep(keras.Model):
    """The `train_step` of Keras's guides, with optimizers of one's own."""

    def __init__(self, *others: Any, steps_own: bool = True) -> None:
        super().__init__()
        self.head = layers.Dense(1)
        self.others, self.steps_own = others, steps_own
        self.kinds: set[str] = set()

    def call(self, x: Any, training: bool = False) -> Any:
        return self.head(x)

    def train_step(self, data: Any) -> Any:
        compute: Any = self.compute_loss
        self.kinds.add(type(data).__name__)
        x, y = data if isinstance(data, tuple) else (data, None)
        if TENSORFLOW:
            import tensorflow as tf

            with tf.GradientTape() as tape:
                loss = compute(x=x, y=y, y_pred=self(x, training=True))
            gradients: Any = tape.gradient(loss, self.trainable_weights)
        else:
            self.zero_grad()
            loss = compute(x=x, y=y, y_pred=self(x, training=True))
            loss.backward()
            gradients = [v.value.grad for v in self.trainable_weights]
        used = [self.optimizer] * self.steps_own + list(self.others)
        with torch.no_grad():
            for optimizer in used:
                optimizer.apply(gradients, self.trainable_weights)
        return {"loss": loss}


def own_step(*others: Any, **options: Any) -> Any:
    keras.utils.set_random_seed(0)
    model = OwnStep(*others, **options)
    model.compile("sgd", "mse")
    return model


@pytest.mark.parametrize("micro_batch_size", [None, 4])
def test_a_second_optimizer_is_refused(micro_batch_size: int | None) -> None:
    for own in (True, False):
        model = own_step(optimizers.Adam(), steps_own=own)
        with pytest.raises(ConfigurationError, match=r"steps a second optimizer, Adam, beside"):
            fit(model, control("fixed", micro_batch_size=micro_batch_size))


def test_a_step_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="did not step the optimizer"):
        fit(own_step(steps_own=False), control("fixed"))


class Alone(OwnStep):
    """Without targets."""

    def compute_loss(self, x: Any = None, **rest: Any) -> Any:
        return ops.mean(ops.square(rest["y_pred"] - x[:, :1]))


def test_inputs_alone_reach_train_step_as_fit_hands_them_over() -> None:
    plain: Any = Alone()
    ours: Any = Alone()
    for model in (plain, ours):
        model.compile("sgd")
        model(X[:2])
    ours.set_weights(plain.get_weights())
    plain.fit(X, batch_size=BASE, verbose=0, shuffle=False)
    c = control("fixed")
    fit(ours, c, c.dataset(X, shuffle=False))
    assert "tuple" not in plain.kinds | ours.kinds
    assert_same_weights(plain, ours)


@pytest.mark.skipif(TENSORFLOW, reason="its variables hold no gradients")
def test_gradients_that_another_pass_left_are_zeroed_before_each_step() -> None:
    class Evaluates(Callback):
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            self.model(torch.from_numpy(X)).sum().backward()

    for limit in (None, 4):
        runs = [network(), network()]
        fit(runs[0], control(micro_batch_size=limit))
        fit(runs[1], control(micro_batch_size=limit), callbacks=[Evaluates()])
        assert_same_weights(*runs)


# -- data --


def loader(**options: Any) -> Any:
    data = TensorDataset(torch.from_numpy(X), torch.from_numpy(Y))
    return DataLoader(data, batch_size=5, **options)


def test_a_loader_of_torchs_is_a_stream_of_its_samples() -> None:
    plain, ours = network(), network()
    plain.fit(X, Y, batch_size=BASE, epochs=2, verbose=0, shuffle=False)
    c = control("fixed")
    fit(ours, c, c.dataset(loader()), epochs=2)
    assert_same_weights(plain, ours)

    c = control()
    fit(network(), c, c.dataset(loader(shuffle=True, drop_last=True)), epochs=2)
    assert c.samples_seen == 2 * 40


@pytest.mark.skipif(not TENSORFLOW, reason="a tf.data.Dataset")
def test_batches_of_tensorflow_are_not_taken_for_samples() -> None:
    import tensorflow as tf

    samples = tf.data.Dataset.from_tensor_slices((X, Y))
    even = samples.batch(4, drop_remainder=True).map(lambda x, y: (x, y)).cache().prefetch(2)
    for batched in (samples.batch(5).prefetch(2), even):
        with pytest.raises(ConfigurationError, match="samples, not batches"):
            control().dataset(batched)
        plain, ours = network(), network()
        plain.fit(samples.batch(BASE), verbose=0)
        c = control("fixed")
        fit(ours, c, c.dataset(batched, size=SAMPLES))
        assert_same_weights(plain, ours)
    windows = samples.map(lambda x, _: x).window(4, 4).flat_map(lambda window: window.batch(4))
    assert control().dataset(windows, size=11) is not None
    c = control()
    with pytest.raises(DeliveryError, match=r"take\(\) a tf.data.Dataset"):
        fit(network(), c, c.dataset(samples.repeat(), size=SAMPLES))


def test_other_kinds_of_data_are_refused() -> None:
    def generator() -> Iterator[Any]:
        while True:
            yield X[:4], Y[:4]

    class Endless(keras.utils.PyDataset):
        def __getitem__(self, index: int) -> Any:
            return X[:4], Y[:4]

    def refused(words: str, *data: Any, **more: Any) -> None:
        with pytest.raises(ConfigurationError, match=words):
            control().dataset(*data, **more)

    refused(r"got generator.*epochs=lambda", generator(), size=SAMPLES)
    refused("for a torch Dataset its DataLoader", loader().dataset)
    refused("got set", {1, 2})
    endless: Any = Endless
    for kind in (endless, type("Told", (endless,), {"num_batches": None})):
        refused("Give it __len__", kind(), size=SAMPLES)
    refused("Pass y, too", X, sample_weight=WEIGHTS)
    refused("not known", DataLoader(loader().dataset, batch_size=None))
    c = control()
    with pytest.raises(DeliveryError, match=r"itertools\.islice ends a generator"):
        fit(network(), c, c.dataset(epochs=lambda _: generator(), size=SAMPLES))
    c = control()
    batches = ((X[:4], None, WEIGHTS[:4]) for _ in range(11))
    with pytest.raises(ConfigurationError, match="weights and no targets"):
        fit(network(), c, c.dataset(epochs=lambda _: batches, size=SAMPLES))


def test_a_fit_that_was_interrupted_goes_on_with_a_new_epoch() -> None:
    """As Keras does; the model serves meanwhile, and nothing of the control is in its way."""

    class Stop(Callback):
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            if c.samples_seen > SAMPLES:
                raise KeyboardInterrupt

    model, c = network(), control()
    data = c.dataset(X, Y)
    with pytest.raises(KeyboardInterrupt):
        fit(model, c, data, epochs=3, callbacks=[Stop()])
    seen = c.samples_seen
    assert SAMPLES < seen < 2 * SAMPLES
    model.evaluate(X, Y, verbose=0)
    fit(model, c, data, epochs=3, initial_epoch=1)
    assert c.samples_seen == seen + 2 * SAMPLES
    c.detach()
    model.fit(X, Y, verbose=0)


@pytest.mark.skipif(not TENSORFLOW, reason="strategies are TensorFlow's")
def test_strategies_of_several_devices_are_refused() -> None:
    import tensorflow as tf

    strategy = tf.distribute.OneDeviceStrategy("CPU:0")
    with strategy.scope():
        alone = network()
    plain = network()
    plain.fit(X, Y, batch_size=BASE, verbose=0, shuffle=False)
    c = control("fixed")
    fit(alone, c, c.dataset(X, Y, shuffle=False))
    assert_same_weights(alone, plain)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("seed", "x", "seed must be a whole number, at least 0; got 'x'"),
        ("prefetch", None, "prefetch must be a whole number of batches, at least 0; got None"),
        ("workers", 1.0, "workers must be a whole number of processes, at least 0; got 1.0"),
        ("size", 8.0, "size must be a whole number of samples, at least 1; got 8.0"),
        ("shuffle", "yes", "shuffle must be True or False; got 'yes'"),
        ("fetch", True, "fetch must be a function of a list of indices, or None; got True"),
    ],
)
def test_arguments_of_another_kind(name: str, value: Any, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        BatchSizeControl(BASE).dataset(np.zeros((SAMPLES, 3)), **{name: value})


def test_a_backups_arguments_of_another_kind(tmp_path: Path) -> None:
    control = BatchSizeControl(np.int64(BASE))
    assert type(control.base_batch_size) is int
    wrong: Any
    for wrong in (None, True, 3):
        with pytest.raises(
            ConfigurationError, match="folder must be the folder of the backups; got"
        ):
            control.backup(wrong)
    for wrong in (0, True, 2.5, "step", None):
        with pytest.raises(ConfigurationError, match="save_freq must be 'epoch' or a number of"):
            control.backup(tmp_path, wrong)
    with pytest.raises(ConfigurationError, match="delete must be True or False"):
        control.backup(tmp_path, delete=wrong)
    control.backup(tmp_path, np.int64(4))
    for wrong in (8.0, True, "8", None):
        with pytest.raises(
            ConfigurationError, match="batch_size must be a whole number of samples"
        ):
            BatchSizeControl(wrong)
