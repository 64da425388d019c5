"""Keras's `fit` under a controller, on the backend that KERAS_BACKEND names.

A process has one backend: `test_keras.py` runs this file in a process for each.
"""

from __future__ import annotations

import os
import runpy

import pytest

if "RLBATCH_TEST_KERAS" not in os.environ:
    pytest.skip("run by test_keras.py, once a backend", allow_module_level=True)

from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np

from rlbatch.control.guard import GuardConfig
from rlbatch.errors import ConfigurationError, DeliveryError
from rlbatch.integrations.keras import BatchSizeControl
from rlbatch.log.decision_record import DecisionRecord
from rlbatch.log.episode_log import read_episode
from rlbatch.policy import tools
from rlbatch.policy.registry import FOR_EPOCHS
from rlbatch.testing import ScriptedPolicy
from tests.rlbatch.integrations.steered import ByBits, known_plan

TENSORFLOW = keras.backend.backend() == "tensorflow"
ops: Any = keras.ops
Callback: Any = keras.callbacks.Callback
Layer: Any = keras.layers.Layer
optimizers: Any = keras.optimizers
SAMPLES, BASE = 75, 8
GROW = ScriptedPolicy((1.0, 0.5, -2.0, 2.5))
READING_AHEAD = {"prefetch": 3} if TENSORFLOW else {"prefetch": 2, "workers": 1}
LAG = 3 if TENSORFLOW else 2

pytestmark = [
    # Said of every data set that is no array, unless shuffle=False is passed.
    pytest.mark.filterwarnings("ignore:`shuffle=True` was passed:UserWarning"),
    # Of Keras's variables when NumPy reads them.
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]

rng = np.random.default_rng(0)
X = rng.normal(size=(SAMPLES, 6)).astype("float32")
Y = np.sin(X.sum(1, keepdims=True)).astype("float32")
ROWS = np.concatenate([X, np.arange(SAMPLES, dtype="float32")[:, None]], 1)


class Noisy(ScriptedPolicy):
    """A script that wants the gradient noise measured."""

    needs_gradient_noise = True


@keras.saving.register_keras_serializable("rlbatch-tests")
class Counter(Layer):
    """Counts the samples that it is trained on, by the number in their last column."""

    def build(self, shape: Any) -> None:
        self.seen = self.add_weight(shape=(SAMPLES,), initializer="zeros", trainable=False)
        self.latest = self.add_weight(shape=(), initializer="zeros", trainable=False)

    def call(self, x: Any, training: bool = False) -> Any:
        if training:
            hits = ops.one_hot(ops.cast(x[:, -1], "int32"), SAMPLES)
            self.seen.assign(self.seen + ops.sum(hits, 0))
            self.latest.assign(self.latest + ops.sum(hits))
        return x[:, :-1]


def network(
    optimizer: Any = None, *, count: bool = False, dropout: float = 0.2, **compiled: Any
) -> Any:
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Dense(12, "tanh"), keras.layers.Dropout(dropout), keras.layers.Dense(1)]
    first = [Counter()] if count else []
    model = keras.Sequential([keras.Input((7 if count else 6,)), *first, *layers])
    optimizer = optimizers.Adam(0.01) if optimizer is None else optimizer
    model.compile(**{"optimizer": optimizer, "loss": "mse", **compiled})
    return model


def control(policy: Any = GROW, **settings: Any) -> BatchSizeControl:
    defaults: dict[str, Any] = {"cost": "samples", "min_batch_size": 1, "max_batch_size": 64}
    defaults |= {"max_chunk_steps": 4}
    return BatchSizeControl(BASE, policy, **{**defaults, **settings})


def fit(model: Any, controller: BatchSizeControl, data: Any, epochs: int = 3, **more: Any) -> Any:
    callbacks = [controller, *more.pop("callbacks", [])]
    return model.fit(data, epochs=epochs, verbose=0, callbacks=callbacks, **more)


def read_log(folder: Path) -> list[DecisionRecord]:
    return list(read_episode(folder).records)


def sizes_by_log(records: list[DecisionRecord], steps: int) -> list[int]:
    """Return the batch size that the log says of each step."""
    sizes = [BASE] * steps
    for record in records:
        if record.event != "end" and record.effective_step is not None:
            sizes[record.effective_step :] = [record.batch_size] * (steps - record.effective_step)
    return sizes


def assert_same_weights(left: Any, right: Any) -> None:
    for a, b in zip(left.get_weights(), right.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


class Watch(Callback):
    """Notes what reaches the model, by a layer within it."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []
        self.epochs: list[Any] = []
        self.steps_of_epochs: list[int] = []
        self._samples = 0

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        samples = round(float(ops.convert_to_numpy(self.model.layers[0].latest)))
        self.sizes.append(samples - self._samples)
        self._samples = samples

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.epochs.append(np.array(ops.convert_to_numpy(self.model.layers[0].seen)))
        self.steps_of_epochs.append(len(self.sizes))


# -- delivered is decided --


@pytest.mark.parametrize("ahead", [{}, READING_AHEAD])
def test_the_batches_that_reach_the_model_are_those_of_the_log(
    tmp_path: Path, ahead: dict[str, Any]
) -> None:
    model, controller, watch = network(count=True), control(log_dir=tmp_path / "log"), Watch()
    fit(model, controller, controller.dataset(ROWS, Y, **ahead), 5, callbacks=[watch])

    records = read_log(tmp_path / "log")
    decided = sizes_by_log(records, len(watch.sizes))
    assert {6, 8, 16, 23, 34} == set(decided)
    ends = set(watch.steps_of_epochs)
    for step, (size, expected) in enumerate(zip(watch.sizes, decided, strict=True)):
        # An epoch's rest is a smaller step, and a single sample goes with the step before.
        at_end = step + 1 in ends and (1 < size < expected or size == expected + 1)
        assert size == expected or at_end
    for epoch, seen in enumerate(watch.epochs):
        np.testing.assert_array_equal(seen, np.full(SAMPLES, epoch + 1.0))
    lag = LAG if ahead else 0
    assert all(record.effective_step == record.step + lag for record in records[:-1])
    assert records[-1].event == "end"
    assert records[-1].samples_seen == 5 * SAMPLES


def test_the_history_is_of_whole_epochs_and_names_the_batch_size() -> None:
    model, controller = network(), control()
    history = fit(model, controller, controller.dataset(X, Y), 4, validation_data=(X, Y)).history
    assert len(history["loss"]) == len(history["val_loss"]) == 4
    assert history["batch_size"][-1] == controller.batch_size
    assert controller.samples_seen == 4 * SAMPLES
    assert int(model.optimizer.iterations) == controller.steps


# -- the plain run --


class PerEpoch(keras.callbacks.LearningRateScheduler):
    def __init__(self) -> None:
        super().__init__(lambda epoch, rate: 0.7 * rate)


RATES: dict[str, Callable[[], Any]] = {
    "number": lambda: 0.01,
    "schedule": lambda: optimizers.schedules.CosineDecay(0.02, 25),
}


@pytest.mark.parametrize("rate", RATES)
def test_a_fixed_size_is_the_plain_fit_bit_for_bit(rate: str) -> None:
    more: dict[str, Any] = {"validation_data": (X[:20], Y[:20]), "validation_batch_size": 8}
    more |= {"epochs": 3, "verbose": 0}

    def model() -> Any:
        return network(optimizers.Adam(RATES[rate](), clipnorm=1.0))

    def callbacks() -> list[Any]:
        return [PerEpoch()] if rate == "number" else []

    plain = model()
    expected = plain.fit(X, Y, BASE, shuffle=False, callbacks=callbacks(), **more).history

    adaptive, controller = model(), control("fixed", lr_coupling="linear")
    data = controller.dataset(X, Y, shuffle=False)
    found = adaptive.fit(data, callbacks=[controller, *callbacks()], **more).history

    assert_same_weights(adaptive, plain)
    assert {name: found[name] for name in expected} == expected
    assert int(adaptive.optimizer.iterations) == int(plain.optimizer.iterations)


def test_the_model_is_as_before_when_fit_is_over() -> None:
    model = network()
    model.fit(X, Y, BASE, verbose=0)
    function, rate = model.train_function, model.optimizer._learning_rate
    value, variables = float(rate.numpy()), len(model.optimizer.variables)
    controller = control(lr_coupling="linear")
    fit(model, controller, controller.dataset(X, Y))

    assert model.train_function is function
    assert model.optimizer._learning_rate is rate
    assert float(rate.numpy()) == value
    assert len(model.optimizer.variables) == variables
    assert "compute_loss" not in vars(model)
    assert "apply" not in vars(model.optimizer)
    model.fit(X, Y, BASE, verbose=0)
    assert controller.samples_seen == 3 * SAMPLES


# -- the learning rate --


def drift(y_true: Any, y_pred: Any) -> Any:
    """Loss whose gradient is 1 for the only weight: it moves by the learning rate."""
    return ops.mean(y_pred) + 0.0 * ops.mean(y_true)


class Moves(Callback):
    """Notes how far the weight moves in each step."""

    def on_train_begin(self, logs: Any = None) -> None:
        self.rates: list[float] = []
        self.shown: list[float] = []
        self._before = float(self.model.get_weights()[0][0, 0])

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        now = float(self.model.get_weights()[0][0, 0])
        self.rates.append(self._before - now)
        self._before = now
        self.shown.append(float(ops.convert_to_numpy(self.model.optimizer.learning_rate)))


def moving(optimizer: Any) -> Any:
    layer = keras.layers.Dense(1, use_bias=False, kernel_initializer="zeros")
    model = keras.Sequential([keras.Input((1,)), layer])
    model.compile(optimizer=optimizer, loss=drift)
    return model


ONES = np.ones((SAMPLES, 1), dtype="float32")


@pytest.mark.parametrize("rate", ["callback", "schedule"])
def test_the_rate_in_force_is_the_users_by_samples_times_the_coupling(
    tmp_path: Path, rate: str
) -> None:
    schedule = optimizers.schedules.PolynomialDecay(1.0, 40, 0.0)
    model = moving(optimizers.SGD(1.0 if rate == "callback" else schedule))
    controller, moves = control(lr_coupling="sqrt", log_dir=tmp_path / "log"), Moves()
    callbacks: list[Any] = [moves, *([PerEpoch()] if rate == "callback" else [])]
    fit(model, controller, controller.dataset(ONES, ONES), 3, callbacks=callbacks)

    decided = sizes_by_log(read_log(tmp_path / "log"), controller.steps)
    assert set(decided) == {6, 8, 16, 23, 34}
    steps_an_epoch, epoch, position, expected = -(-SAMPLES // BASE), 0, 0, []
    for size in decided:
        done = epoch * steps_an_epoch + position // BASE
        user = 0.7 ** (epoch + 1) if rate == "callback" else 1.0 - done / 40
        expected.append(user * (size / BASE) ** 0.5)
        position += size
        if position >= SAMPLES:
            epoch, position = epoch + 1, 0
    np.testing.assert_allclose(moves.rates, expected, rtol=2e-4, atol=1e-5)
    if rate == "callback":  # what callbacks see is the user's own, between the steps
        assert {round(shown, 5) for shown in moves.shown} == {0.7, 0.49, 0.343}
    else:
        assert model.optimizer._learning_rate is schedule


def test_a_plateau_lowers_the_rate_under_the_coupling() -> None:
    model = moving(optimizers.SGD(0.5))
    controller, moves = control(ScriptedPolicy((1.0,)), lr_coupling="linear"), Moves()
    plateau = keras.callbacks.ReduceLROnPlateau("loss", 0.1, patience=0, mode="max")
    fit(model, controller, controller.dataset(ONES, ONES), 2, callbacks=[moves, plateau])
    assert moves.rates[1] == pytest.approx(1.0)
    assert moves.rates[-1] == pytest.approx(2 * moves.shown[-1], rel=1e-3)
    assert float(model.optimizer.learning_rate.numpy()) == pytest.approx(0.05)


def test_a_rate_that_goes_by_batches_is_warned_about() -> None:
    class ByBatch(Callback):
        def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
            self.model.optimizer.learning_rate = 0.5 / (batch + 1)

    controller = control()
    model = moving(optimizers.SGD(0.5))
    with pytest.warns(RuntimeWarning, match="LearningRateSchedule, which then goes by samples"):
        fit(model, controller, controller.dataset(ONES, ONES), 1, callbacks=[ByBatch()])


def test_switching_off_returns_to_the_users_size_and_rate() -> None:
    class Off(Callback):
        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            if epoch == 1:
                controller.disable()

    model, watch, moves = network(count=True), Watch(), Moves()
    controller = control(ScriptedPolicy((1.0, 1.0)), lr_coupling="linear")
    fit(model, controller, controller.dataset(ROWS, Y), 2, callbacks=[watch, Off()])
    assert watch.sizes[watch.steps_of_epochs[0] :] == [BASE] * 9 + [3]
    assert controller.components["learning_rate_factor"] == 1.0

    model = moving(optimizers.SGD(0.125))
    controller = control(ScriptedPolicy((1.0, 1.0)), lr_coupling="linear")
    fit(model, controller, controller.dataset(ONES, ONES), 2, callbacks=[moves, Off()])
    np.testing.assert_allclose(moves.rates[-10:], 0.125, rtol=1e-5)


# -- what is measured --


def test_the_loss_of_a_step_is_its_own_and_not_the_epochs_mean() -> None:
    model = network(optimizers.SGD(0.0), dropout=0.0)
    controller = control("fixed", first_chunk_steps=4, min_chunk_steps=4)
    expected = [
        float(np.mean((model.predict(X[i : i + BASE], verbose=0) - Y[i : i + BASE]) ** 2))
        for i in (0, BASE, 2 * BASE)
    ]

    class Stop(Callback):
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            self.model.stop_training = batch == 2

    fit(model, controller, controller.dataset(X, Y, shuffle=False), 1, callbacks=[Stop()])
    chunk = controller.state_dict()["control_loop"]["monitor"]
    np.testing.assert_allclose(chunk["losses"], expected, rtol=1e-5)


@pytest.mark.parametrize("kind", ["SGD", "Adam", "RMSprop"])
@pytest.mark.parametrize("scale", [None, 64.0])
def test_gradient_norms_are_those_of_the_half_batches(kind: str, scale: float | None) -> None:
    if scale is not None and kind != "Adam":
        pytest.skip("one is enough")
    settings: dict[str, Any] = {"SGD": {}, "Adam": {"beta_2": 0.9}, "RMSprop": {"rho": 0.8}}[kind]
    optimizer = getattr(keras.optimizers, kind)(0.0, loss_scale_factor=scale, **settings)
    layer = keras.layers.Dense(1, use_bias=False, kernel_initializer="ones")
    model = keras.Sequential([keras.Input((6,)), layer])
    model.compile(optimizer=optimizer, loss="mse")
    policy = Noisy(())
    chunk_steps = {f"{name}_chunk_steps": 9 for name in ("first", "min", "max")}
    controller = control(policy, micro_batch_size=BASE // 2, **chunk_steps)

    class Stop(Callback):
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            self.model.stop_training = batch == 4

    fit(model, controller, controller.dataset(X, Y, shuffle=False), 1, callbacks=[Stop()])
    chunk = controller.state_dict()["control_loop"]["monitor"]

    residual = X.sum(1) - Y[:, 0]
    gradients = (2.0 * residual[:, None] * X).astype(np.float64)  # of each sample
    moment, expected = np.zeros(6), []
    for step in range(5):
        a, b = np.split(gradients[step * BASE : (step + 1) * BASE], 2)
        weight = np.ones(6)
        if kind == "Adam" and step:
            weight = 1.0 / (np.sqrt(moment / (1.0 - 0.9**step)) + 1e-7)
        elif kind == "RMSprop" and step:
            weight = 1.0 / (np.sqrt(moment) + 1e-7)
        half, other = a.mean(0), b.mean(0)
        both = 0.5 * (half + other)
        norms = [float((weight * v**2).sum()) for v in (half, other, both)]
        cosine = (weight * half * other).sum() / np.sqrt(norms[0] * norms[1])
        expected.append([0.5 * (norms[0] + norms[1]), norms[2], cosine])
        decay = 0.9 if kind == "Adam" else 0.8
        moment = decay * moment + (1.0 - decay) * both**2
    first = 0 if kind == "SGD" else 1  # before, there is no second moment
    assert chunk["owners"] == list(range(first, 5))
    assert chunk["sizes"] == [[4.0, 8.0]] * (5 - first)
    np.testing.assert_allclose(np.reshape(chunk["norms"], (-1, 3)), expected[first:], rtol=2e-4)


def test_signal_and_noise_are_those_of_the_data(tmp_path: Path) -> None:
    """At fixed weights the means are known: the estimates scatter around them."""
    many = np.random.default_rng(1).normal(size=(4000, 6)).astype("float32")
    layer = keras.layers.Dense(1, use_bias=False, kernel_initializer="ones")
    model = keras.Sequential([keras.Input((6,)), layer])
    model.compile(optimizer=optimizers.SGD(0.0), loss="mse")
    targets = np.zeros((4000, 1), dtype="float32")
    controller = control(Noisy(()), micro_batch_size=BASE // 2, log_dir=tmp_path / "log")
    fit(model, controller, controller.dataset(many, targets), 1)

    gradients = 2.0 * many.sum(1, keepdims=True) * many
    mean = gradients.mean(0)
    trace = float(((gradients - mean) ** 2).sum(1).mean())
    chunks = [record.signals for record in read_log(tmp_path / "log")[:-1]]
    pairs: list[Any] = [(c["grad_sqr"], c["noise_trace"]) for c in chunks]
    found = np.array([pair for pair in pairs if np.isfinite(pair[0])])
    assert len(found) > 100
    signal, noise = np.mean(found, 0)
    errors = np.std(found, 0) / np.sqrt(len(found))
    assert abs(signal - float((mean**2).sum())) < 4.0 * errors[0]
    assert abs(noise - trace) < 4.0 * errors[1]
    assert errors[1] < 0.2 * trace


def test_steps_in_parts_are_the_whole_steps() -> None:
    """Dividing a batch changes no gradient, whether it is measured or not."""

    def trained(policy: Any, **settings: Any) -> Any:
        optimizer = optimizers.Adam(0.01, global_clipnorm=0.1)
        model, controller = network(optimizer, dropout=0.0, count=True), control(policy, **settings)
        fit(model, controller, controller.dataset(ROWS, Y), 3)
        assert int(model.optimizer.iterations) == controller.steps
        return model, controller

    script = (1.0, 0.5, -2.0, 2.5)
    whole, _ = trained(ScriptedPolicy(script))
    for policy, settings in (
        (Noisy(script), {"micro_batch_size": 4}),
        (ScriptedPolicy(script), {"micro_batch_size": 5}),
        (Noisy(script), {"micro_batch_size": 3}),
    ):
        divided, controller = trained(policy, **settings)
        assert controller.components["traces"]["part"] > 0
        for a, b in zip(divided.get_weights(), whole.get_weights(), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-6)


def test_validation_losses_reach_the_decisions(tmp_path: Path) -> None:
    model, controller = network(), control(log_dir=tmp_path / "log")
    history = fit(model, controller, controller.dataset(X, Y), 4, validation_data=(X, Y)).history
    records = read_log(tmp_path / "log")[:-1]
    told = [record.signals["val_loss"] for record in records]
    assert [value for value in told if np.isfinite(value)] == history["val_loss"][:3]


def test_fit_tells_how_long_the_run_is(tmp_path: Path) -> None:
    model = network()
    controller = BatchSizeControl(BASE, log_dir=tmp_path / "whole")
    fit(model, controller, controller.dataset(X, Y), 5)
    assert known_plan(tmp_path / "whole") == (FOR_EPOCHS, 5 * SAMPLES)
    # Who goes on with the epochs that are left goes on with the same plan.
    controller.detach()
    other = BatchSizeControl(BASE, log_dir=tmp_path / "whole")
    data = other.dataset(X, Y)
    other.load_state_dict(controller.state_dict())
    fit(model, other, data, 2)
    assert (other.components["policy"], other.config.epochs) == (FOR_EPOCHS, 5)
    aiming = BatchSizeControl(BASE, log_dir=tmp_path / "target", target_loss=0.01)
    fit(network(), aiming, aiming.dataset(X, Y), 1)
    assert known_plan(tmp_path / "target") == ("default", "NaN")


# -- compiled functions --


def test_steps_of_any_size_are_traced_once() -> None:
    model = network(count=True)
    controller = control(Noisy((1.0, 0.5, -2.0, 2.5, -1.3, 0.7)), micro_batch_size=8)
    fit(model, controller, controller.dataset(ROWS, Y), 6)
    traces = controller.components["traces"]
    if TENSORFLOW:  # the first trace of all makes the optimizer's variables, and another follows
        assert traces["whole"] <= 2
        assert traces["part"] == traces["apply"] == 1
        assert traces["measured"] <= 1
    else:
        assert traces["whole"] + traces["measured"] + traces["apply"] == controller.steps


@pytest.mark.skipif(not TENSORFLOW, reason="torch compiles in its own way: see docs/keras.md")
def test_sizes_are_powers_of_two_where_each_is_compiled() -> None:
    model = network(jit_compile=True, dropout=0.0)
    sizes: list[int] = []

    class Sizes(Callback):
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            sizes.append(controller.samples_seen - sum(sizes))

    controller = control(ScriptedPolicy((1.0, 0.5, -2.0, 2.5, -1.3, 0.7)))
    fit(model, controller, controller.dataset(X, Y), 5, callbacks=[Sizes()])
    assert sum(sizes) == 5 * SAMPLES
    assert set(sizes) <= {1, 2, 4, 8, 16, 32, 64, SAMPLES % BASE}
    assert len(set(sizes)) > 3
    assert controller.components["traces"]["whole"] <= 2


# -- saving and going on --


class InterruptedRunError(Exception):
    pass


class Interrupt(Callback):
    """Ends a run after so many steps since an epoch began."""

    def __init__(self, step: int, epoch: int = 0) -> None:
        super().__init__()
        self.step, self.epoch, self.begun = step, epoch, False

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self.begun = epoch >= self.epoch

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        if self.begun and self.step == 0:
            raise InterruptedRunError
        self.step -= self.begun


# How many steps an epoch has depends on the bits by which sizes are chosen: five at least.
@pytest.mark.parametrize(("save_freq", "epoch", "step"), [("epoch", 1, 3), (5, 0, 17), (1, 0, 6)])
def test_an_interrupted_run_makes_the_same_decisions_and_weights(
    tmp_path: Path, save_freq: Any, epoch: int, step: int
) -> None:
    ahead: dict[str, Any] = READING_AHEAD if save_freq == 5 and TENSORFLOW else {}

    controls: list[BatchSizeControl] = []

    def go(name: str, *callbacks: Any) -> Any:
        model = network(optimizers.Adam(optimizers.schedules.CosineDecay(0.02, 60)))
        controller = control(
            ByBits(), lr_coupling="adascale", micro_batch_size=7, max_batch_size=16,
            log_dir=tmp_path / name,
        )  # fmt: skip
        controls.append(controller)
        backup = controller.backup(tmp_path / f"{name}-backup", save_freq)
        more: dict[str, Any] = {"validation_data": (X, Y), "callbacks": [backup, *callbacks]}
        fit(model, controller, controller.dataset(X, Y, **ahead), 4, **more)
        return model

    whole = go("whole")
    with pytest.raises(InterruptedRunError):
        go("parts", Interrupt(step, epoch))
    controls[-1].detach()
    kept = [path for path in (tmp_path / "parts-backup").iterdir() if path.name[0] != "."]
    assert len(kept) == 1
    resumed = go("parts")

    assert_same_weights(resumed, whole)
    assert int(resumed.optimizer.iterations) == int(whole.optimizer.iterations)
    expected, found = (
        [record.to_json() for record in read_log(tmp_path / name)] for name in ("whole", "parts")
    )
    assert found == expected
    assert not (tmp_path / "parts-backup").exists()


def test_a_state_without_its_weights_is_refused() -> None:
    model, controller = network(), control()
    fit(model, controller, controller.dataset(X, Y), 1)
    fresh, other = network(), control()
    data = other.dataset(X, Y)
    other.load_state_dict(controller.state_dict())
    with pytest.raises(ConfigurationError, match="weights and optimizer of the same moment"):
        fit(fresh, other, data, 1)


def test_another_call_of_fit_continues_the_run(tmp_path: Path) -> None:
    model, controller = network(), control(log_dir=tmp_path / "log")
    data = controller.dataset(X, Y)
    fit(model, controller, data, 2)
    fit(model, controller, data, 2)
    assert controller.samples_seen == 4 * SAMPLES
    records = read_log(tmp_path / "log")
    assert [record.index for record in records] == list(range(len(records)))
    assert [record.samples_seen for record in records if record.event == "end"] == [150, 300]
    with pytest.raises(ConfigurationError, match="one model and one optimizer"):
        fit(network(), controller, data, 1)


# -- other callbacks, other models, other data --


def test_early_stopping_stops_where_it_does_without_a_controller() -> None:
    """The end of an epoch must not be taken for the end of training, nor the other way round."""
    for order in (0, 1):
        model, controller = network(optimizers.SGD(0.0), dropout=0.0), control()
        stop = keras.callbacks.EarlyStopping("val_loss", patience=2)
        callbacks = [stop, controller] if order == 0 else [controller, stop]
        data = controller.dataset(X, Y)
        more: dict[str, Any] = {"validation_data": (X, Y), "verbose": 0}
        history = model.fit(data, epochs=9, callbacks=callbacks, **more)
        assert len(history.history["loss"]) == 3
        assert model.stop_training is True


def test_training_can_be_stopped_within_an_epoch() -> None:
    class Stop(Callback):
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            self.model.stop_training = batch == 2

    model, controller = network(), control("fixed")
    data = controller.dataset(X, Y)
    fit(model, controller, data, 5, callbacks=[Stop()])
    assert controller.samples_seen == 3 * BASE
    fit(model, controller, data, 1)  # a new epoch, whole
    assert controller.samples_seen == 3 * BASE + SAMPLES


def test_a_models_own_train_step_is_used() -> None:
    class Mine(keras.Model):
        calls = 0

        def __init__(self) -> None:
            super().__init__()
            self.dense = keras.layers.Dense(1)

        def call(self, x: Any) -> Any:
            return self.dense(x)

        def train_step(self, data: Any) -> Any:
            type(self).calls += 1
            return super().train_step(data)

    model = Mine()
    model.compile(optimizers.SGD(0.01), "mse")
    controller = control(Noisy((1.0,)), micro_batch_size=7)
    fit(model, controller, controller.dataset(X, Y), 2)
    assert Mine.calls > 0
    assert controller.components["traces"]["part"] > 0


def test_a_train_step_that_computes_no_loss_is_refused() -> None:
    class Mine(keras.Sequential):
        def train_step(self, data: Any) -> Any:
            return {"loss": 0.0}

    model = Mine([keras.Input((6,)), keras.layers.Dense(1)])
    model.compile(optimizers.SGD(0.01), "mse")
    controller = control()
    with pytest.raises(ConfigurationError, match="compute_loss"):
        fit(model, controller, controller.dataset(X, Y), 1)


class Blocks(keras.utils.PyDataset):
    """Batches of a size of the user's own."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> Any:
        return ROWS[10 * index : 10 * index + 10], Y[10 * index : 10 * index + 10]


def in_order(epoch: int) -> Any:
    start = 11 * epoch % SAMPLES
    order = np.roll(np.arange(SAMPLES), -start)
    return ((ROWS[order[i : i + 13]], Y[order[i : i + 13]]) for i in range(0, SAMPLES, 13))


def by_indices(indices: list[int]) -> Any:
    return ROWS[indices], Y[indices], np.ones(len(indices))


SOURCES: dict[str, Callable[[BatchSizeControl], Any]] = {
    "weighted arrays": lambda c: c.dataset(ROWS, Y, np.ones(SAMPLES)),
    "function of indices": lambda c: c.dataset(fetch=by_indices, size=SAMPLES),
    "PyDataset": lambda c: c.dataset(Blocks(), size=SAMPLES),
    "function of the epoch": lambda c: c.dataset(epochs=in_order, size=SAMPLES),
}


def tf_data(c: BatchSizeControl) -> Any:
    import tensorflow as tf

    return c.dataset(tf.data.Dataset.from_tensor_slices((ROWS, Y)).shuffle(30, seed=1))


def mapped(c: BatchSizeControl) -> Any:
    import tensorflow as tf

    return c.dataset(ROWS, Y).map(lambda x, y: (x, 2.0 * y)).prefetch(tf.data.AUTOTUNE)


if TENSORFLOW:
    SOURCES |= {"tf.data": tf_data, "mapped and prefetched": mapped}


@pytest.mark.parametrize("source", SOURCES)
def test_samples_come_from_many_places(tmp_path: Path, source: str) -> None:
    model, watch = network(count=True), Watch()
    controller = control(log_dir=tmp_path / "log")
    fit(model, controller, SOURCES[source](controller), 2, callbacks=[watch])
    for epoch, seen in enumerate(watch.epochs):
        np.testing.assert_array_equal(seen, np.full(SAMPLES, epoch + 1.0))
    decided = sizes_by_log(read_log(tmp_path / "log"), len(watch.sizes))
    ends = set(watch.steps_of_epochs)
    for step, (size, expected) in enumerate(zip(watch.sizes, decided, strict=True)):
        assert size == expected or (step + 1 in ends and size < expected)


def test_several_inputs_keep_their_names() -> None:
    a, b = keras.Input((6,), name="a"), keras.Input((6,), name="b")
    model = keras.Model({"a": a, "b": b}, keras.layers.Dense(1)(keras.layers.Add()([a, b])))
    model.compile(optimizers.SGD(0.01), "mse")
    controller = control(Noisy((1.0,)), micro_batch_size=7)
    fit(model, controller, controller.dataset({"a": X, "b": X.astype("float64")}, Y), 2)
    assert controller.samples_seen == 2 * SAMPLES


def test_a_stream_in_another_order_cannot_be_resumed() -> None:
    def epochs(shift: int) -> Any:
        return lambda epoch: in_order(epoch + shift)

    class Stop(Callback):
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            self.model.stop_training = batch == 2

    model, controller = network(count=True), control()
    fit(model, controller, controller.dataset(epochs=epochs(0), size=SAMPLES), callbacks=[Stop()])
    for shift in (0, 1):
        other = control()
        data = other.dataset(epochs=epochs(shift), size=SAMPLES)
        other.load_state_dict(controller.state_dict())
        if shift == 0:
            fit(model, other, data, 1)
            np.testing.assert_array_equal(model.layers[0].get_weights()[0], np.ones(SAMPLES))
            model.optimizer._iterations.assign(controller.steps)
        else:
            with pytest.raises(ConfigurationError, match="another one than in the run"):
                fit(model, other, data, 1)


@pytest.mark.parametrize("size", [SAMPLES - 1, SAMPLES + 1])
def test_a_stream_of_another_length_is_refused(size: int) -> None:
    controller = control()
    data = controller.dataset(epochs=in_order, size=size)
    with pytest.raises(DeliveryError, match="true number"):
        fit(network(count=True), controller, data, 1)


# -- the guard --


def test_a_chunk_that_does_damage_is_undone(tmp_path: Path) -> None:
    optimizer = optimizers.SGD(0.05, momentum=0.5)
    model = network(optimizer, dropout=0.0)
    policy = ScriptedPolicy((0.0, 0.0, 0.0, 1.0, 2.0))
    settings: dict[str, Any] = {"lr_coupling": "linear", "guard": GuardConfig(significance=1.0)}
    controller = control(policy, log_dir=tmp_path / "log", **settings)

    class Spoil(Callback):
        """What a far too high rate does, at a place that is known."""

        def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
            in_chunk = controller.components["chunk"][0] == 1
            if controller.batch_size == 64 and in_chunk and self.before is None:
                self.before = model.get_weights()
                self.velocities = [np.array(v.numpy()) for v in model.optimizer.variables]
                for weight in model.trainable_weights:
                    weight.assign(weight + 30.0)

        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            if controller.components["rollbacks"] and self.after is None:
                self.after = model.get_weights()
                self.state = [np.array(v.numpy()) for v in model.optimizer.variables]

        before = after = None

    spoil = Spoil()
    with pytest.warns(RuntimeWarning, match="steps are undone"):
        fit(model, controller, controller.dataset(X, Y), 12, callbacks=[spoil])
    assert controller.components["rollbacks"] == 1
    assert [r.event for r in read_log(tmp_path / "log")].count("rollback") == 1
    assert spoil.before is not None
    assert spoil.after is not None
    largest = max(float(np.abs(weight).max()) for weight in spoil.after)
    assert largest < 5.0
    assert spoil.state[0] <= spoil.velocities[0]


def test_damage_saved_by_a_backup_is_undone_behind_it(tmp_path: Path) -> None:
    class Spoil(Callback):
        """Damages the weights in the chunk of 64; the run ends one backup later."""

        def __init__(self, controller: Any, goes: bool) -> None:
            super().__init__()
            self.controller, self.goes = controller, goes
            self.before = self.after = None

        def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
            if self.controller.batch_size != 64:
                return
            done = self.controller.components["chunk"][0]
            if done == 1 and self.before is None and self.goes:
                self.before = self.model.get_weights()
                for weight in self.model.trainable_weights:
                    weight.assign(weight + 30.0)
            elif done == 2 and self.goes:
                raise InterruptedRunError

        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            if self.controller.components["rollbacks"] and self.after is None:
                self.after = self.model.get_weights()

    settings: dict[str, Any] = {"lr_coupling": "linear", "guard": GuardConfig(significance=1.0)}
    spoils: list[Spoil] = []
    for goes in (True, False):
        optimizer = optimizers.SGD(0.05, momentum=0.5)
        model = network(optimizer, dropout=0.0)
        policy = ScriptedPolicy((0.0, 0.0, 0.0, 1.0, 2.0))
        controller = control(policy, log_dir=tmp_path / "log", **settings)
        spoils.append(Spoil(controller, goes))
        backup = controller.backup(tmp_path / "backup", 1)
        more = [spoils[-1], backup]
        undone = pytest.warns(RuntimeWarning, match="steps are undone")
        with pytest.raises(InterruptedRunError) if goes else undone:
            fit(model, controller, controller.dataset(X, Y), 12, callbacks=more)
        controller.detach()
    before, after = spoils[0].before, spoils[1].after
    assert before is not None
    assert after is not None
    assert max(float(np.abs(weight).max()) for weight in after) < 5.0
    # One step of the chunk was before the damage.
    assert max(float(np.abs(x - y).max()) for x, y in zip(before, after, strict=True)) < 1.0
    events = [r.event for r in read_log(tmp_path / "log")]
    assert events.count("rollback") == 1


def test_the_changed_lines_of_the_page_run(
    changed_lines: Callable[[str], tuple[str, str]],
) -> None:
    for controlled, lines in enumerate(changed_lines("keras.md")):
        scope: dict[str, Any] = {"x": X, "y": Y, "val_x": X, "val_y": Y, "model": network()}
        exec(lines, scope)
        assert scope["model"].history.epoch == list(range(10))
        if controlled:
            assert scope["control"].samples_seen == 10 * SAMPLES


def test_the_example(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    example = Path(__file__).parents[3] / "examples" / "keras_run.py"
    arguments = [str(example), "--policy", "goodput", "--epochs", "3"]
    monkeypatch.setattr("sys.argv", arguments)
    runpy.run_path(str(example), run_name="__main__")
    shown = capsys.readouterr().out
    assert f"Keras on {keras.backend.backend()}" in shown
    assert "samples seen: 3 x 1,437" in shown


# -- what is refused --


def test_another_backend_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """On JAX the step keeps its state elsewhere: that is said before anything is trained."""
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    with pytest.raises(ConfigurationError, match="KERAS_BACKEND=tensorflow"):
        BatchSizeControl(8, "fixed")


def refused(
    match: str, model: Any = None, policy: Any = GROW, settings: Any = None, **more: Any
) -> None:
    controller = control(policy, **(settings or {}))
    data = controller.dataset(X, Y)
    with pytest.raises((ConfigurationError, DeliveryError), match=match):
        fit(network() if model is None else model, controller, data, 2, **more)


def test_epochs_counted_in_steps_are_refused() -> None:
    refused("without steps_per_epoch", steps_per_epoch=5)


@pytest.mark.skipif(not TENSORFLOW, reason="Keras itself refuses it with torch")
def test_several_steps_at_once_are_refused() -> None:
    refused("steps_per_execution=1", network(steps_per_execution=4))


def test_accumulation_by_the_optimizer_is_refused() -> None:
    optimizer = optimizers.SGD(0.1, gradient_accumulation_steps=4)
    refused("give the controller micro_batch_size", network(optimizer))


def test_models_for_one_size_only_are_refused() -> None:
    model = keras.Sequential([keras.Input(batch_shape=(BASE, 6)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    refused("in place of batch_shape", model)


def test_sums_over_a_batch_are_not_computed_in_parts() -> None:
    model = network(loss=keras.losses.MeanSquaredError(reduction="sum"))
    refused("reduction='sum'", model, settings={"micro_batch_size": 4})
    whole = control(Noisy(()), noise_rate=np.inf)  # which divides nothing that fits
    with pytest.warns(RuntimeWarning, match="with the batch size its gradient grows"):
        fit(model, whole, whole.dataset(X, Y), 1)
    assert whole.components["traces"]["part"] == 0


def test_data_without_the_controller_is_refused() -> None:
    controller = control()
    with pytest.raises(DeliveryError if not TENSORFLOW else Exception, match="without it"):
        network().fit(controller.dataset(X, Y), verbose=0)


def test_the_controller_without_its_data_is_refused() -> None:
    controller = control()
    with pytest.raises(ConfigurationError, match=r"control\.dataset"):
        network().fit(X, Y, verbose=0, callbacks=[controller])
    controller.dataset(X, Y)
    with pytest.raises(ConfigurationError, match="without steps_per_epoch"):
        network().fit(X, Y, verbose=0, callbacks=[controller])
    with pytest.raises(ConfigurationError, match="made already"):
        controller.dataset(X, Y)


@pytest.mark.skipif(not TENSORFLOW, reason="a tf.data.Dataset")
@pytest.mark.filterwarnings("ignore:Your input ran out of data:UserWarning")
def test_pipelines_that_regroup_samples_are_refused() -> None:
    for spoil, match in (
        (lambda data: data.unbatch().batch(5), "reached the model"),
        (lambda data: data.take(3), "ended after 24 of 75"),
    ):
        controller = control("fixed")
        data = spoil(controller.dataset(X, Y))
        with pytest.raises(DeliveryError, match=match):
            fit(network(), controller, data, 1)


def test_a_failing_policy_does_not_end_the_training() -> None:
    class Broken(ScriptedPolicy):
        def decide(self, observation: Any, signals: Any, state: Any) -> Any:
            if float(signals.total_steps) > 1:
                raise ValueError("broken")
            return tools.decision(1.0, "grow"), state

    model, watch = network(count=True), Watch()
    controller = control(Broken(()))
    with pytest.warns(RuntimeWarning, match="switching off after ValueError: broken"):
        fit(model, controller, controller.dataset(ROWS, Y), 2, callbacks=[watch])
    assert watch.sizes[-9:] == [BASE] * 8 + [3] or watch.sizes[-2] == BASE
    np.testing.assert_array_equal(watch.epochs[-1], np.full(SAMPLES, 2.0))


def test_an_exception_gives_the_model_back() -> None:
    model, controller = network(), control()
    data = controller.dataset(X, Y)
    with pytest.raises(InterruptedRunError):
        fit(model, controller, data, 1, callbacks=[Interrupt(3)])
    controller.detach()
    model.fit(X, Y, BASE, verbose=0)
    fit(model, controller, data, 1)
    assert SAMPLES < controller.samples_seen < 2 * SAMPLES


def test_a_saved_model_knows_nothing_of_the_controller(tmp_path: Path) -> None:
    model, controller = network(optimizers.Adam(RATES["schedule"]())), control()
    checkpoint = keras.callbacks.ModelCheckpoint(str(tmp_path / "model.keras"))
    fit(model, controller, controller.dataset(X, Y), 2, callbacks=[checkpoint])
    loaded: Any = keras.saving.load_model(tmp_path / "model.keras")
    assert isinstance(loaded.optimizer._learning_rate, optimizers.schedules.CosineDecay)
    assert_same_weights(loaded, model)
