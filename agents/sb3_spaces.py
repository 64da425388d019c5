"""What a stable-baselines3 model was trained between: its spaces, and whether they are plain.

Of a zip only JSON and the operation codes of pickles are read, as in `rlbatch.agents.sb3_zip`.
"""

from __future__ import annotations

import base64
import pickletools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from rlbatch.envs.spaces import CHANGES, SCHEMA
from rlbatch.errors import ConfigurationError
from rlbatch.observation import OBSERVATION_SIZE, SCHEMA_VERSION

_BYTES = ("SHORT_BINBYTES", "BINBYTES", "BINBYTES8", "BYTEARRAY8")
_ROUNDED = 1e-5
_BOX, _DISCRETE = (space.__name__ for space in (gymnasium.spaces.Box, gymnasium.spaces.Discrete))


@dataclass(frozen=True)
class Spaces:
    """A model's spaces.

    Attributes:
        observation: Name of the class of the observation's space; empty where it is not known.
        action: Likewise of the action's.
        first_action: Number of the first action, 0 for most spaces.
        changes: Of log2(batch size), for which the actions stand; None where it is not noted.
        schema: Version of the observation; None where it is not noted.
        largest: Largest absolute value that an observation may have, or had; 0 if not known.
    """

    observation: str = ""
    action: str = ""
    first_action: int = 0
    changes: tuple[float, ...] | None = None
    schema: int | None = None
    largest: float = 0.0

    def require_plain(self, origin: str) -> None:
        """Refuse spaces that are not those of the environments.

        Args:
            origin: How messages call the model.

        Raises:
            ConfigurationError: They are not.
        """
        for what, found, wanted in (
            ("observations", self.observation, _BOX),
            ("actions", self.action, _DISCRETE),
        ):
            if found not in ("", wanted):
                raise ConfigurationError(
                    f"{origin} has {what} of a space {found}, and {wanted} was expected. Train on "
                    "the environments of rlbatch as they are."
                )
        if self.first_action:
            raise ConfigurationError(
                f"{origin} has actions that begin at {self.first_action}; 0 was expected. Train "
                "with a Discrete space that starts at 0."
            )
        if self.schema not in (None, SCHEMA_VERSION):
            raise ConfigurationError(
                f"{origin} was trained on version {self.schema} of the observation, and this "
                f"rlbatch makes version {SCHEMA_VERSION}. Train it anew, or export it with the "
                "rlbatch of that time."
            )
        if self.largest > 1.0 + _ROUNDED:
            raise ConfigurationError(
                f"{origin} was trained on observations beyond [-1, 1], up to {self.largest:.3g}: "
                "they were normalised or scaled, and a policy file has no place for that. Train "
                "without: VecNormalize(..., norm_obs=False). The observations are bounded already."
            )


def spaces_of_settings(settings: Mapping[str, Any]) -> Spaces:
    """Return the spaces of a zip from its settings."""
    seen = _mapping(settings.get("observation_space"))
    acted = _mapping(settings.get("action_space"))
    action = _class_name(acted)
    return Spaces(
        observation=_class_name(seen),
        action=action,
        first_action=int(acted.get("start", 0)) if action in ("", _DISCRETE) else 0,
        changes=_changes(acted.get(CHANGES)),
        schema=seen.get(SCHEMA),
        largest=max(
            *(_largest(_written(str(seen.get(end, "")))) for end in ("low", "high")),
            _largest(_pickled(_mapping(settings.get("_last_obs")).get(":serialized:", ""))),
        ),
    )


def spaces_of_model(model: Any) -> Spaces:
    """Return the spaces of a model in this process."""
    seen, acted = model.observation_space, model.action_space
    ends = [getattr(seen, end, 0.0) for end in ("low", "high")]
    last = getattr(model, "_last_obs", None)
    if isinstance(last, np.ndarray):
        ends.append(last.reshape(len(last), -1)[:, :OBSERVATION_SIZE])
    return Spaces(
        observation=type(seen).__name__,
        action=type(acted).__name__,
        first_action=int(getattr(acted, "start", 0)) if type(acted).__name__ == _DISCRETE else 0,
        changes=_changes(getattr(acted, CHANGES, None)),
        schema=getattr(seen, SCHEMA, None),
        largest=max(map(_largest, ends)),
    )


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _class_name(space: Mapping[str, Any]) -> str:
    return str(space.get(":type:", "")).rpartition(".")[2].removesuffix("'>")


def _changes(noted: Any) -> tuple[float, ...] | None:
    return tuple(map(float, noted)) if isinstance(noted, list | tuple) else None


def _largest(values: Any) -> float:
    return float(np.abs(np.asarray(values, np.float64)).max(initial=0.0))


def _written(text: str) -> list[float]:
    """Return the numbers of an array that was written as text; none where some are left out."""
    try:
        return [float(word) for word in text.replace("[", " ").replace("]", " ").split()]
    except ValueError:
        return []


def _pickled(text: str) -> NDArray[np.float32]:
    """Return the observations among a pickled array's bytes; none if it is of another kind."""
    found, single = b"", False
    codes: Any = pickletools.genops(base64.b64decode(text)) if text else ()
    for code, argument, _ in codes:
        if code.name in _BYTES:
            found = max(found, bytes(argument), key=len)
        single = single or argument == "f4"
    none = np.zeros(0, np.float32)
    if not single or len(found) % 4:
        return none
    values = np.frombuffer(found, "<f4")
    # More numbers to an observation than the first ones are hints for a critic in training.
    return values if values.size % OBSERVATION_SIZE == 0 else none
