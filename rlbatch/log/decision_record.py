"""One line of an episode log: what was seen, decided and applied, and its strict JSON form."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from os import PathLike, fspath
from sys import intern
from typing import Any, Literal, cast, get_args

import numpy as np

from rlbatch.errors import EpisodeLogError

Event = Literal["decision", "rollback", "fallback", "off", "out_of_memory", "end"]
EVENTS: tuple[str, ...] = get_args(Event)

# JSON has no such numbers. The words are those of the protobuf JSON mapping: Python's float() and
# JavaScript's Number() both read them.
_NAN, _INF, _MINUS_INF = "NaN", "Infinity", "-Infinity"


@dataclass(frozen=True, kw_only=True)
class DecisionRecord:
    """One line of the log. Numbers are stored as plain Python numbers, sequences as tuples.

    Attributes:
        index: Number of the line, counted from 0: the log's `position` when it is written.
        event: What happened: a decision, the guard's rollback, a change to the fall-back policy,
            the controller switching itself off, an out-of-memory retreat, or the end of the run.
        step: Optimizer steps done.
        effective_step: First optimizer step (counted from 0) that uses `batch_size`; None when no
            step will, or when data loaded ahead leaves it unknown.
        epoch: Epochs done, as a fraction.
        samples_seen: Samples that went into optimizer steps so far.
        cost: Cost so far, in the objective's unit.
        signals: The chunk's measurements by name, uncertainties included; NaN where not measured.
        observation: What the policy saw; None if it was not encoded.
        probabilities: Probability of each action; None for rules.
        value: The policy's estimate of the return; None for rules.
        requested_log2_change: Change of log2(batch size) that the policy asked for.
        applied_log2_change: Change that was applied, after every limit and rounding.
        batch_size_before: Global batch size of the chunk that ended.
        batch_size: Global batch size applied from `effective_step` on.
        learning_rate_factor: Factor of the learning-rate coupling at `batch_size`.
        reasons: Why, and why applied differs from requested, in words.
    """

    index: int
    event: Event
    step: int
    effective_step: int | None
    epoch: float
    samples_seen: int
    cost: float
    batch_size_before: int
    batch_size: int
    requested_log2_change: float = 0.0
    applied_log2_change: float = 0.0
    learning_rate_factor: float = 1.0
    signals: Mapping[str, float | Sequence[float]] = field(default_factory=dict[str, float])
    observation: Sequence[float] | None = None
    probabilities: Sequence[float] | None = None
    value: float | None = None
    reasons: Sequence[str] = ()

    def __post_init__(self) -> None:
        """Store plain Python numbers, and refuse what a reader would refuse."""
        if self.event not in EVENTS:
            raise EpisodeLogError(f"event must be one of {', '.join(EVENTS)}; got {self.event!r}.")
        for names, convert in _CONVERSIONS.items():
            for name in names:
                value = getattr(self, name)
                if value is not None or name not in _OPTIONAL:
                    self._set(name, convert(name, value))
        # The names are the same in each of a log's lines: one object of each is kept.
        signals: dict[str, Any] = {}
        for name, value in self.signals.items():
            is_list = isinstance(value, list | tuple) or getattr(value, "ndim", 0)
            signals[intern(str(name))] = (_numbers if is_list else _number)(name, value)
        self._set("signals", signals)
        if isinstance(self.reasons, str):
            raise EpisodeLogError(
                f"reasons must be a list of texts; got the text {self.reasons!r}."
            )
        self._set("reasons", tuple(str(reason) for reason in self.reasons))

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)  # the dataclass is frozen for everyone else

    def to_json(self) -> str:
        """Return one line of strict JSON, without the newline."""
        return dumps({f.name: getattr(self, f.name) for f in fields(self)})

    @classmethod
    def from_json(cls, line: str | bytes) -> DecisionRecord:
        """Read a line written by `to_json`. Names that this version does not know are ignored.

        Raises:
            EpisodeLogError: The line is no such record; the message says what is wrong with it.
        """
        try:
            content: Any = json.loads(line)
        except ValueError as error:
            raise EpisodeLogError(f"not valid JSON ({error})") from error
        if not isinstance(content, dict):
            raise EpisodeLogError(f"expected a JSON object, got {type(content).__name__}")
        values = cast("dict[str, Any]", content)
        missing = sorted(_REQUIRED - values.keys())
        if missing:
            raise EpisodeLogError(f"without {', '.join(missing)}")
        known = {f.name: values[f.name] for f in fields(cls) if f.name in values}
        try:
            return cls(**known)
        except (TypeError, ValueError, AttributeError) as error:
            raise EpisodeLogError(f"a field has the wrong type ({error})") from error


_REQUIRED = frozenset(
    ("index", "event", "step", "epoch", "samples_seen", "cost", "batch_size_before", "batch_size")
)


def dumps(content: object, indent: int | None = None) -> str:
    """Return strict JSON: NaN and infinities become the texts "NaN", "Infinity" and "-Infinity".

    Dataclasses and other objects are not guessed at: convert them first.

    Raises:
        EpisodeLogError: Something inside has no JSON form.
    """
    separators = (",", ":") if indent is None else None
    return json.dumps(_plain(content), allow_nan=False, indent=indent, separators=separators)


def _plain(value: object) -> object:
    """Return `value` made of JSON's own types."""
    if isinstance(value, (np.generic, np.ndarray)):
        value = cast("object", value.tolist())
    if isinstance(value, float):
        if math.isfinite(value):
            return value
        return _NAN if math.isnan(value) else (_INF if value > 0 else _MINUS_INF)
    if value is None or isinstance(value, (str, int)):
        return value
    if isinstance(value, PathLike):
        return fspath(cast("PathLike[str]", value))
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in cast("Mapping[object, object]", value).items()}
    if isinstance(value, Sequence):
        return [_plain(item) for item in cast("Sequence[object]", value)]
    raise EpisodeLogError(
        f"A log holds numbers, texts, lists and mappings; got {type(value).__name__} ({value!r}). "
        "Convert it first, for example with dataclasses.asdict or str."
    )


def _whole(name: str, value: Any) -> int:
    number = _number(name, value)
    if not number.is_integer() or number < 0:
        raise EpisodeLogError(f"{name} must be a whole number of 0 or more; got {value!r}.")
    return int(value)


def _size(name: str, value: Any) -> int:
    if _whole(name, value) < 1:
        raise EpisodeLogError(f"{name} must be at least 1; got {value!r}.")
    return _whole(name, value)


def _number(name: str, value: Any) -> float:
    """Read a number, or one of the three words; size-one arrays and tensors count as numbers."""
    if type(value) is float:  # nearly always: a line has a hundred of them
        return value
    if isinstance(value, str) and value not in (_NAN, _INF, _MINUS_INF):
        raise EpisodeLogError(f"{name} must be a number; got the text {value!r}.")
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise EpisodeLogError(f"{name} must be a number; got {value!r}.") from error


def _numbers(name: str, value: Any) -> tuple[float, ...]:
    items = value.tolist() if hasattr(value, "tolist") else value
    if isinstance(items, str) or not isinstance(items, Sequence):
        raise EpisodeLogError(f"{name} must be a list of numbers; got {value!r}.")
    numbers = cast("Sequence[Any]", items)
    if set(map(type, numbers)) == {float}:
        return tuple(numbers)
    return tuple(_number(name, item) for item in numbers)


_OPTIONAL = ("effective_step", "observation", "probabilities", "value")
_CONVERSIONS: dict[tuple[str, ...], Callable[[str, Any], Any]] = {
    ("index", "step", "samples_seen", "effective_step"): _whole,
    ("batch_size_before", "batch_size"): _size,
    ("epoch", "cost", "value", "learning_rate_factor"): _number,
    ("requested_log2_change", "applied_log2_change"): _number,
    ("observation", "probabilities"): _numbers,
}
