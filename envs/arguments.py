"""What the environments are called with: actions, options, render modes, starts, profiles."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rlbatch.envs.profiles import DeviceProfile, resolve_profile
from rlbatch.envs.settings import EpisodeSetting
from rlbatch.envs.task import Task
from rlbatch.errors import ConfigurationError, UnknownNameError
from rlbatch.signals.record import Array, Coupling

RENDER_MODES = ("ansi", "rgb_array")


def action_grid(actions: Sequence[float]) -> tuple[float, ...]:
    """Return the changes of log2(batch size) that the actions stand for.

    Raises:
        ConfigurationError: There are none, or one is no finite number.
    """
    try:
        grid = tuple(float(change) for change in actions)
    except (TypeError, ValueError):
        grid = ()
    if not grid or not all(map(math.isfinite, grid)):
        raise ConfigurationError(
            f"actions must be finite changes of log2(batch size), got {actions!r}. "
            "For example (-1, 0, 1): halve, stay, double."
        )
    return grid


def require_planned_steps(steps: Any) -> None:
    """Refuse a length of a schedule that is no whole number of steps.

    Raises:
        ConfigurationError: It is neither None nor a positive whole number.
    """
    whole = isinstance(steps, int | np.integer) and not isinstance(steps, bool)
    if steps is not None and not (whole and steps >= 1):
        raise ConfigurationError(
            f"planned_steps must be a whole number of steps, at least 1, got {steps!r}. Leave it "
            "out for what the task's epochs say."
        )


def changes(grid: Sequence[float], actions: Any, shape: tuple[int, ...] = ()) -> Array:
    """Return the changes of log2(batch size) for which actions stand.

    Args:
        grid: From `action_grid`.
        actions: Whole numbers of that shape, from 0 to one less than the grid has.
        shape: `()` for one environment.

    Raises:
        ConfigurationError: They are anything else.
    """
    given = np.asarray(actions)
    known = np.issubdtype(given.dtype, np.integer)
    if shape == () and given.size == 1:
        given = given.reshape(())
    if not known or given.shape != shape or (given < 0).any() or (given >= len(grid)).any():
        wanted = "a whole number" if shape == () else f"whole numbers of shape {shape}"
        raise ConfigurationError(
            f"An action must be {wanted} from 0 to {len(grid) - 1}, got {actions!r}. Entry i of "
            f"the action grid {tuple(grid)} is the change of log2(batch size) of action i."
        )
    return np.asarray(grid, dtype=np.float64)[given]


def require_render_mode(render_mode: str | None) -> None:
    """Refuse a render mode that the environments do not have.

    Raises:
        ConfigurationError: It is neither None nor one of `RENDER_MODES`.
    """
    if render_mode is not None and render_mode not in RENDER_MODES:
        raise ConfigurationError(
            f"render_mode must be None, {' or '.join(map(repr, RENDER_MODES))}, got "
            f"{render_mode!r}."
        )


def known_options(options: Mapping[str, Any] | None, *known: str) -> dict[str, Any]:
    """Return the options of a reset.

    Raises:
        ConfigurationError: One is not among the known ones, or they are no mapping.
    """
    if options is not None and not isinstance(options, Mapping):
        raise ConfigurationError(f"options must be a dictionary or None, got {options!r}.")
    given = dict(options or {})
    unknown = sorted(set(given) - set(known))
    if unknown:
        has = f"knows the options {', '.join(known)}" if known else "knows no options"
        raise ConfigurationError(
            f"reset() of this environment {has}, got {', '.join(map(repr, unknown))}. Leave it out."
        )
    return given


def require_source(source: object) -> None:
    """Refuse a source of settings that cannot be called.

    Raises:
        ConfigurationError: It cannot.
    """
    if not callable(source):
        raise ConfigurationError(
            "source must be a function that takes a NumPy generator and returns an EpisodeSetting, "
            f"got {source!r}."
        )


def drawn_setting(setting: object) -> EpisodeSetting:
    """Return what a source has drawn.

    Raises:
        ConfigurationError: It is no setting.
    """
    if not isinstance(setting, EpisodeSetting):
        raise ConfigurationError(
            "source must return an EpisodeSetting (rlbatch.envs.settings) for each episode, got "
            f"{setting!r}."
        )
    return setting


def start_batch_size(task: Task, start: float) -> int:
    """Return the first batch size of a run.

    Args:
        task: What is trained.
        start: Relative to the task's own.

    Raises:
        ConfigurationError: It is no positive number, or leads out of what the task can be run at.
    """
    size: int = len(task.train_set)  # type: ignore[arg-type]
    largest = task.max_batch_size or size
    number = isinstance(start, int | float | np.number) and not isinstance(start, bool)
    if not number or not math.isfinite(start) or not 1 <= round(task.batch_size * start) <= largest:
        raise ConfigurationError(
            f"start multiplies the batch size of task {task.name!r}, {task.batch_size}, and must "
            f"lead to a size from 1 to {largest}; got {start!r}. Take a number from "
            f"{1 / task.batch_size:.3g} to {largest / task.batch_size:.3g}."
        )
    return round(task.batch_size * start)


def coupling_of(name: str | Coupling) -> Coupling:
    """Return how the learning rate follows the batch size.

    Raises:
        UnknownNameError: There is no such coupling.
    """
    try:
        return Coupling(name)
    except ValueError:
        known = [coupling.value for coupling in Coupling]
        raise UnknownNameError("coupling", str(name), known) from None


def profile_of(profile: str | DeviceProfile) -> DeviceProfile | None:
    """Return a device profile; None for the clock on the wall.

    Raises:
        UnknownNameError: There is no such profile.
    """
    if isinstance(profile, DeviceProfile):
        return profile
    return None if profile == "wall" else resolve_profile(str(profile))
