"""One model's training under a controller: its steps, and what is decided behind them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
from torch import nn

from rlbatch.control.build import make_control_loop, make_engine, run_info
from rlbatch.control.config import ControllerConfig
from rlbatch.control.decision_logger import Place
from rlbatch.control.loader import RandomState
from rlbatch.control.rollback import Rollback
from rlbatch.data.delivery import Delivered
from rlbatch.data.step_plan import plan_step
from rlbatch.errors import ConfigurationError
from rlbatch.integrations._keras_checks import check_model, divides
from rlbatch.integrations._keras_flow import Flow
from rlbatch.integrations._keras_monitor import KerasMonitor, KerasSnapshot
from rlbatch.integrations._keras_optimizer import OptimizerFacts, on_host
from rlbatch.integrations._keras_sizes import PowersOfTwo, Rounded
from rlbatch.integrations._keras_steps import Steps, parts_of, samples_in, sum_of_parts
from rlbatch.integrations._shared import SampleCount
from rlbatch.log.episode_log import EpisodeLog
from rlbatch.policy.base import Policy


class ControlledRun:
    """Takes the place of a model's train function.

    Attributes:
        model: What is trained.
        control_loop: Decides.
        steps: How the model steps.
        facts: Its optimizer.
        plain_steps: Steps that the plain run would have made with as many samples.
        epoch_is_over: The latest step was the last one of its epoch.
    """

    def __init__(
        self,
        model: Any,
        flow: Flow,
        policy: Policy,
        config: ControllerConfig,
        state: Mapping[str, Any] | None = None,
    ) -> None:
        """Prepare a run.

        Args:
            model: Compiled.
            flow: Plans its batches.
            policy: Decides.
            config: The settings.
            state: Of `state_dict`, to go on from.

        Raises:
            ConfigurationError: Something about the model cannot be steered.
        """
        check_model(model)
        self.model, self._flow = model, flow
        self.facts = facts = OptimizerFacts(model)
        self.steps = Steps(model)
        self._count = SampleCount(flow.base_batch_size, flow.size)
        self._offset = self.plain_steps = self._iterations()
        if state is not None:
            facts.initial_rate = state["learning_rate"]
        self._micro_batch_size = config.limits.known_micro_batch_size
        config, engine = self._limited(config, policy)
        like_torch = facts.as_torch()
        guard = Rollback(nn.Module(), like_torch, config.guard, KerasSnapshot(model, facts))
        self._monitor = KerasMonitor(facts, self.steps.compiled)
        self.control_loop = make_control_loop(
            nn.Module(),
            like_torch,
            policy,
            config,
            base_batch_size=flow.base_batch_size,
            dataset_size=flow.size,
            engine=engine,
            monitor=self._monitor,
            guard=guard,
        )
        self._policy, self._is_resumed = policy, state is not None
        self._is_logged = False
        self._log_was_closed = self.epoch_is_over = False
        self._epochs_done, self._rate_noted = 0.0, False
        self._expected_iterations: int | None = None
        self._original: Any = None
        self._divides: bool | None = None
        self._random: Mapping[str, Any] | None = None
        if config.limits.known_micro_batch_size is not None:
            self._divides = divides(model, required=True)
        if state is not None:
            self._load(state)

    def _limited(self, config: ControllerConfig, policy: Policy) -> tuple[ControllerConfig, Any]:
        """Return settings and engine; few sizes where each is compiled."""
        flow = self._flow
        if not self.model.jit_compile:
            return config, make_engine(policy, config)
        limits = config.bounds(flow.base_batch_size, flow.size)
        flow.sizes = PowersOfTwo.between(*limits, flow.base_batch_size, flow.size)
        config = flow.sizes.limited(config)
        engine = make_engine(policy, config)
        engine.policy = Rounded(engine.policy, flow.sizes.allowed)
        return config, engine

    # -- in the place of the model's own train function --

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
        """Make the step on the next batch."""
        try:
            data = self._next(iterator)
            plan = self._flow.arrive(samples_in(data))
            return self._step(plan, data)
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
            if self._flow.error is not None:
                raise self._flow.error from error
            raise

    def _step(self, plan: Delivered, data: Any) -> dict[str, Any]:
        flow, control_loop, rate = self._flow, self.control_loop, self.facts.rate
        if self._expected_iterations is not None:
            self._check_iterations()
            self._restore_random()  # behind what the data pipeline has drawn when it began
        if not self._rate_noted:  # behind the callbacks that set it at the epoch's beginning
            rate.begin_epoch()
            self._rate_noted = True
        sizes = self._sizes(plan)
        control_loop.begin_step(plan.batch_size, sizes)
        self.plain_steps = self._offset + self._count.steps(plan.epoch, plan.step_start)
        with rate.applied(control_loop.rate.factor, self.plain_steps):
            logs = self._divided(data, sizes) if len(sizes) > 1 else self._whole(data)
        flow.done()
        position = plan.step_start + plan.step_samples
        self.plain_steps = self._offset + self._count.steps(plan.epoch, position)
        self._epochs_done = plan.epoch + position / flow.size
        with flow.lock:  # nothing may be issued between what the log says and what is done
            control_loop.end_step(plan.step_samples, self.place)
            flow.set_batch_size(control_loop.batch_size)
        self.epoch_is_over = flow.is_complete(plan)
        if self.epoch_is_over:
            control_loop.cost_tracker.pause()
        return logs

    def _sizes(self, plan: Delivered) -> list[int]:
        measure = self.control_loop.measure(plan.step)
        if measure and self._divides is None:
            self._divides = divides(self.model, required=False)
        measure = measure and bool(self._divides)
        limit = self._micro_batch_size
        return list(plan_step(plan.step_samples, limit, measure=measure).sizes)

    def _whole(self, data: Any) -> dict[str, Any]:
        logs, loss = self.steps.whole(data)
        self.control_loop.after_backward(loss)
        return logs

    def _divided(self, data: Any, sizes: list[int]) -> dict[str, Any]:
        samples, total = sum(sizes), []
        logs: dict[str, Any] = {}
        for size, part in zip(sizes, parts_of(data, sizes), strict=True):
            logs, loss, gradient = self.steps.part(part)
            gradient, total = sum_of_parts(total, gradient, size / samples)
            self._monitor.take_gradient(gradient)
            self.control_loop.after_backward(loss)
        self.steps.apply(total)
        return logs

    # -- around epochs --

    def begin_epoch(self, policy_name: str) -> None:
        """An epoch of `fit` begins."""
        self._open_log(policy_name)
        self.epoch_is_over = self._rate_noted = False
        self.control_loop.abandon_step()
        if not self._flow.resumes_within_epoch:
            self._restore_random()
        self._flow.open_epoch()
        self.control_loop.cost_tracker.resume()

    def _open_log(self, policy_name: str) -> None:
        folder, parts = self.control_loop.config.log_dir, self.control_loop
        if self._is_logged:
            return
        self._is_logged = True
        info = run_info(policy_name, self.model, self.facts.optimizer, parts)
        info["action_grid"] = getattr(self._policy, "action_grid", None)
        info["backend"] = keras.backend.backend()
        resume = self._log_was_closed or self._is_resumed
        if folder is not None:
            parts.open_log(EpisodeLog(folder, info, resume=resume))
        parts.track(info)

    def close_log(self) -> None:
        """Note the end of a `fit`; another one continues the log."""
        if self._is_logged:
            self.control_loop.close(self.place())
            self._is_logged, self._log_was_closed = False, True

    def has_optimizer_of(self, model: Any) -> bool:
        """Whether a model is still compiled with the optimizer of the run."""
        return getattr(model.optimizer, "inner_optimizer", model.optimizer) is self.facts.optimizer

    def place(self) -> Place:
        """Return where the run is."""
        return Place(self._epochs_done, self._flow.next_step)

    def disable(self, reason: str) -> None:
        """Return to the user's batch size and decide nothing any more."""
        with self._flow.lock:
            self.control_loop.disable(reason, self.place())
            self._flow.set_batch_size(self.control_loop.batch_size)

    def state_dict(self) -> dict[str, Any]:
        """Return everything that the coming decisions depend on."""
        return {
            "control_loop": self.control_loop.state_dict(),
            "learning_rate": self.facts.initial_rate,
            "iterations": self._iterations(),
            "offset": self._offset,
            "random": {
                "seeds": [on_host(seed).tolist() for seed in self._seeds()],
                "torch": list(RandomState.now()) if keras.backend.backend() == "torch" else None,
            },
        }

    def _load(self, state: Mapping[str, Any]) -> None:
        self.control_loop.load_state_dict(state["control_loop"])
        self._offset, self._expected_iterations = state["offset"], state["iterations"]
        self._random = state["random"]

    def _restore_random(self) -> None:
        random, self._random = self._random, None
        if random is None:
            return
        for seed, value in zip(self._seeds(), random["seeds"], strict=True):
            seed.assign(value)
        if random["torch"] is not None:  # its dropout draws from the global generators
            RandomState(*random["torch"]).restore()

    def _seeds(self) -> list[Any]:
        """Return the seeds that dropout layers count up: they are not among the weights."""
        model = self.model
        known = {id(v) for v in [*model.weights, *model.metrics_variables]}
        return [v for v in model.variables if id(v) not in known]

    def _check_iterations(self) -> None:
        expected, self._expected_iterations = self._expected_iterations, None
        found = self._iterations()
        if found != expected:
            raise ConfigurationError(
                f"The controller's state was saved at optimizer iteration {expected}, and the "
                f"optimizer is at {found}. Load weights and optimizer of the same moment: "
                "control.backup(folder) keeps them together."
            )

    def _iterations(self) -> int:
        return int(on_host(self.facts.optimizer._iterations))
