"""One model's training under a controller: what takes the place of its train function."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import keras

from rlbatch.control.build import keeps_size
from rlbatch.control.config import ControllerConfig
from rlbatch.control.random_state import RandomState
from rlbatch.control.saved_state import require_like
from rlbatch.control.step_planner import StepPlanner
from rlbatch.data.delivery import Delivered
from rlbatch.data.step_plan import plan_step
from rlbatch.errors import ConfigurationError
from rlbatch.integrations._keras_checks import (
    check_divisible,
    check_model,
    warn_of_smaller_parts,
    warn_of_sum,
)
from rlbatch.integrations._keras_means import scaled
from rlbatch.integrations._keras_monitor import KerasMonitor, add_up
from rlbatch.integrations._keras_noise import SampleNoise
from rlbatch.integrations._keras_parts import warn_about_parts, warn_about_sum
from rlbatch.integrations._keras_steps import Steps, keras_parts, parts_of, samples_in
from rlbatch.integrations._keras_training import KerasRate, on_host
from rlbatch.integrations._shared import SampleCount
from rlbatch.loop_adapter import LoopAdapter
from rlbatch.policy.base import Policy

# Their annotations name the tensors of every backend at once.
ops: Any = keras.ops
tree: Any = keras.tree

# What a state holds of a fit, by kind.
_FIT = {
    **{"learning_rate": 0.0, "iterations": 0, "offset": 0, "skipped": 0},
    **{"seeds": [], "torch": None},
}


class TrainFunction:
    """Takes the place of a model's train function.

    Attributes:
        model: What is trained.
        adapter: Decides.
        steps: How the model steps.
        plain_steps: Steps that the plain run would have made with as many samples.
        epoch_is_over: The latest step was the last one of its epoch.
    """

    def __init__(
        self,
        model: Any,
        planner: StepPlanner,
        policy: Policy | str,
        config: ControllerConfig,
        state: Mapping[str, Any] | None = None,
        hooks: Sequence[tuple[Any, Any]] = (),
    ) -> None:
        """Prepare a run.

        Args:
            model: Compiled.
            planner: Plans its batches.
            policy: Decides.
            config: The settings.
            state: Of `state_dict`, to go on from.
            hooks: What a roll-back saves and restores beside the model.

        Raises:
            ConfigurationError: Something about the model cannot be steered.
        """
        check_model(model)
        self._micro_batch_size = _micro_batch_size(model, config, planner.base_batch_size)
        self.model, self._planner, self._rate = model, planner, KerasRate(model)
        self.steps = Steps(model, SampleNoise(model, self._rate))
        if state is not None:
            require_like(state["fit"], _FIT, "the state of the fit")
            self._rate.continue_from(state["fit"])
        self._monitor = KerasMonitor(self._rate, self.steps.noise, self.steps.compiled)
        self.adapter = LoopAdapter(
            keras_parts(model, self._rate, self._monitor),
            batch_size=planner.base_batch_size,
            dataset_size=planner.size,
            policy=policy,
            config=config,
            loader=planner,
            powers_of_two=bool(model.jit_compile),  # each size is compiled anew
            log_info={"backend": keras.backend.backend()},
        )
        keeps = keeps_size(self.adapter.policy_name, config)
        self._may_grow = not keeps and not warn_of_sum(model)  # unseen, a loss that is a sum
        for hook in hooks:
            self.adapter.on_rollback(*hook)
        planner.sizes = self.adapter.few_sizes
        self._count = SampleCount(planner.base_batch_size, planner.size)
        self._offset = self.plain_steps = self._rate.iterations
        self.epoch_is_over = self._rate_noted = self._looked = False
        self._expected_iterations: int | None = None
        self._random: Mapping[str, Any] | None = None
        self._original: Any = None  # train function of the model
        if state is not None:
            self._load(state)

    def install(self) -> None:
        """Take the place of the model's train function."""
        if self._original is None:
            self._original = self.model.train_function
        self.steps.renew()
        self.model.train_function = self

    def uninstall(self) -> None:
        """Give the model its train function back."""
        original, self._original = self._original, None
        if self.model.train_function is self:
            self.model.train_function = original

    def __call__(self, iterator: Any) -> dict[str, Any]:
        """Make the optimizer step of the next batch and decide."""
        try:
            data = self._next(iterator)
            return self._step(self._planner.arrive(samples_in(data)), data)
        except StopIteration:
            raise
        except BaseException:
            self.uninstall()
            raise

    def _next(self, iterator: Any) -> Any:
        if isinstance(iterator, list):  # torch: Keras has taken the batch from its loader
            return iterator[0]
        self.steps.expect(getattr(iterator, "element_spec", None))
        try:
            return next(iterator)
        except StopIteration:
            raise
        except Exception as error:
            if self._planner.error is not None:
                raise self._planner.error from error
            raise

    def _step(self, plan: Delivered, data: Any) -> dict[str, Any]:
        if self._expected_iterations is not None:
            self._check_iterations()
            self._restore_random()  # after what the data pipeline has drawn when it began
        if not self._rate_noted:  # after the callbacks that set it at the epoch's beginning
            self._rate.begin_epoch()
            self._rate_noted = True
        sizes = list(plan_step(plan.step_samples, self._micro_batch_size).sizes)
        self.adapter.begin_step(plan.batch_size, sizes)
        self.plain_steps = self._offset + self._count.steps(plan.epoch, plan.step_start)
        with self._rate.applied(self.plain_steps):
            logs = self._in_parts(data, sizes) if len(sizes) > 1 else self._whole(data)
        self.plain_steps = self._offset + self._count.steps(plan.epoch, plan.step_end)
        with self._planner.lock:  # nothing may be issued between what the log says and what is done
            self.adapter.end_step(plan.step_samples, epoch=plan.epoch, position=plan.step_end)
        self.epoch_is_over = self._planner.is_complete(plan)
        if self.epoch_is_over:
            self.adapter.end_epoch()
        return logs

    def _whole(self, data: Any) -> dict[str, Any]:
        if self._may_grow:
            self._may_grow = False
            warn_about_sum(self.model, data, samples_in(data))
        drawn = self._monitor.drawn
        if drawn is None or self.steps.draws_by_place:
            logs, loss = self.steps.whole(data)
        else:
            logs, loss, found = self.steps.measured(data, drawn)
            self._monitor.take_samples(found)
        self.adapter.after_backward(loss)
        return logs

    def _in_parts(self, data: Any, sizes: list[int]) -> dict[str, Any]:
        samples, total = sum(sizes), []
        if not self._looked:
            self._looked = True
            warn_about_parts(self.model, next(parts_of(data, sizes)), sizes[0])
        logs: dict[str, Any] = {}
        weighted_loss: Any = 0.0
        weights: Any = 0.0  # of all parts so far
        weight: Any = None
        for size, part in zip(sizes, parts_of(data, sizes), strict=True):
            logs, loss, gradient, weight = self.steps.part(part)
            if weight is not None:
                total = add_up(total, scaled(gradient, weight))
                weighted_loss, weights = weighted_loss + loss * weight, weights + weight
                continue
            weighted = scaled(gradient, size / samples)
            total = add_up(total, weighted)
            self._monitor.take_gradient(weighted)
            self.adapter.after_backward(loss)
        if weight is not None:
            total = self._divided(total, weighted_loss, weights, len(sizes))
        self.steps.apply(total)
        return logs

    def _divided(self, total: list[Any], loss: Any, weights: Any, parts: int) -> list[Any]:
        """Return the gradient of parts that are weighted by what their losses are means of."""
        share = ops.divide_no_nan(ops.ones_like(weights), weights)
        self.adapter.leave_unmeasured()
        for _ in range(parts):  # each has a share in samples: together the step's loss
            self.adapter.after_backward(loss * share)
        return scaled(total, share)

    def begin_epoch(self) -> None:
        """An epoch of `fit` begins."""
        self.epoch_is_over = self._rate_noted = False
        if not self._planner.resumes_within_epoch:
            self._restore_random()
        self._planner.open_epoch()
        self.adapter.begin_epoch()

    def belongs_to(self, model: Any) -> bool:
        """Whether it is made for a model, compiled with the optimizer that it is compiled with."""
        optimizer = getattr(model.optimizer, "inner_optimizer", model.optimizer)
        return self.model is model and self._rate.optimizer is optimizer

    def disable(self, reason: str) -> None:
        """Return to the user's batch size and decide nothing any more."""
        with self._planner.lock:
            self.adapter.disable(reason)

    def state_dict(self) -> dict[str, Any]:
        """Return everything that the coming decisions depend on."""
        torch_random = list(RandomState.now()) if keras.backend.backend() == "torch" else None
        fit = {
            "learning_rate": self._rate.initial,
            "iterations": self._rate.iterations,
            "offset": self._offset,
            "skipped": self._rate.skipped,
            "seeds": [on_host(seed).tolist() for seed in self._seeds()],
            "torch": torch_random,  # its dropout draws from the global generators
        }
        return {**self.adapter.state_dict(), "fit": fit}

    def _load(self, state: Mapping[str, Any]) -> None:
        self.adapter.load_state_dict(state)
        self._random = fit = state["fit"]
        self._offset, self._expected_iterations = fit["offset"], fit["iterations"]

    def _restore_random(self) -> None:
        random, self._random = self._random, None
        if random is None:
            return
        for seed, value in zip(self._seeds(), random["seeds"], strict=True):
            seed.assign(value)
        if random["torch"] is not None:
            RandomState(*random["torch"]).restore()

    def _seeds(self) -> list[Any]:
        """Return the seeds that dropout layers count up: they are not among the weights."""
        model = self.model
        known = {id(v) for v in [*model.weights, *model.metrics_variables]}
        return [v for v in model.variables if id(v) not in known]

    def _check_iterations(self) -> None:
        expected, self._expected_iterations = self._expected_iterations, None
        found = self._rate.iterations
        if found != expected:
            raise ConfigurationError(
                f"The controller's state was saved at optimizer iteration {expected}, and the "
                f"optimizer is at {found}. Load weights and optimizer of the same moment: "
                "control.backup(folder) keeps them together."
            )


def _micro_batch_size(model: Any, config: ControllerConfig, samples: int) -> int | None:
    limits = config.limits
    found = limits.known_micro_batch_size if limits.divisible else None
    if found is not None:
        check_divisible(model)
        warn_of_smaller_parts(model, found, samples)
    return found
