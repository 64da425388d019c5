"""What a stable-baselines3 zip holds of a policy, read without running any code in it.

The zip has the weights (`policy.pth`) and the settings (`data`, JSON whose other values are pickles
in base64). Of the pickles only the operation codes are looked at, which names a class by its module
and name; what a pickle would do when loaded is not done. The weights are read by torch's loader for
tensors alone.
"""

from __future__ import annotations

import base64
import io
import json
import pickletools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast
from zipfile import BadZipFile, ZipFile

import numpy as np
import torch
from numpy.typing import NDArray

from rlbatch.agents.sb3_spaces import Spaces, spaces_of_model, spaces_of_settings
from rlbatch.envs.batch_size_env import DEFAULT_ACTIONS
from rlbatch.errors import ConfigurationError, PolicyFileError

_CLASS = re.compile(r"<class '([\w.]+)'>")
_CODES_OF_A_NAME = {"PROTO", "FRAME", "MEMOIZE", "STOP", "STACK_GLOBAL"}


@dataclass(frozen=True)
class SavedModel:
    """The policy of a stable-baselines3 model, from a zip or from memory.

    Attributes:
        origin: How messages call it.
        policy_class: Module and name of the policy's class; empty where it has none to import.
        keywords: `policy_kwargs`; a class as `<class 'module.Name'>`.
        parameters: The policy's `state_dict`.
        spaces: Between which it was trained.
    """

    origin: str
    policy_class: str
    keywords: Mapping[str, Any]
    parameters: dict[str, NDArray[np.float32]]
    spaces: Spaces = field(default_factory=Spaces)


def read_zip(path: Path) -> SavedModel:
    """Read what `model.save` of stable-baselines3 wrote.

    Raises:
        PolicyFileError: There is no such file, or it is none of stable-baselines3's.
    """
    if not path.is_file():
        raise PolicyFileError(f"{path}: there is no such file. Name the zip that model.save wrote.")
    try:
        with ZipFile(path) as archive:
            settings = json.loads(archive.read("data"))
            weights = archive.read("policy.pth")
        state = torch.load(io.BytesIO(weights), map_location="cpu", weights_only=True)
        parameters = {name: np.asarray(tensor.detach()) for name, tensor in state.items()}
        keywords = settings["policy_kwargs"] or {}
        made = settings["policy_class"]
        spaces = spaces_of_settings(settings)
    except BadZipFile as error:
        raise PolicyFileError(
            f"{path}: expected a zip that model.save of stable-baselines3 wrote; this is none, or "
            "only a part of one. Save the model again."
        ) from error
    except Exception as error:  # a damaged file makes the parsers fail in many ways
        raise PolicyFileError(
            f"{path}: cannot be read as a model of stable-baselines3 ({type(error).__name__}: "
            f"{error}). Save the model again with model.save."
        ) from error
    pickled = cast(Mapping[str, Any], made).get(":serialized:", "")
    return SavedModel(str(path), pickled_class(pickled), keywords, parameters, spaces)


def from_memory(model: Any) -> SavedModel:
    """Return the policy of a model of stable-baselines3 in this process."""
    policy = model.policy
    made = type(policy)
    parameters = {name: tensor.cpu().numpy() for name, tensor in policy.state_dict().items()}
    return SavedModel(
        f"The {type(model).__name__} model",
        f"{made.__module__}.{made.__qualname__}",
        {key: str(value) for key, value in (model.policy_kwargs or {}).items()},
        parameters,
        spaces_of_model(model),
    )


def pickled_class(text: str) -> str:
    """Return module and name of the class that a pickle names; empty if it does anything else.

    Args:
        text: The pickle in base64.
    """
    names: list[str] = []
    for code, argument, _ in pickletools.genops(base64.b64decode(text)):
        if code.name in ("SHORT_BINUNICODE", "BINUNICODE"):
            names.append(str(argument))
        elif code.name not in _CODES_OF_A_NAME:
            return ""
    return ".".join(names) if len(names) == 2 else ""


def class_of(keywords: Mapping[str, Any], key: str, default: str) -> str:
    """Return module and name of a class among `policy_kwargs`.

    Args:
        keywords: Those of a `SavedModel`.
        key: Such as `activation_fn`.
        default: Where it is not given.

    Raises:
        ConfigurationError: What is given is no plain class.
    """
    if key not in keywords:
        return default
    found = _CLASS.fullmatch(str(keywords[key]))
    if found is None:
        raise ConfigurationError(
            f"policy_kwargs[{key!r}] is {keywords[key]}, and a policy file knows classes without "
            "settings of their own only. Train with one of torch.nn."
        )
    return found[1]


def action_grid(
    saved: SavedModel, count: int, actions: Sequence[float] | None
) -> tuple[float, ...]:
    """Return the changes of log2(batch size) that a model's actions stand for.

    Args:
        saved: The model.
        count: Its actions.
        actions: The environment's; None for those that the model was saved with, or the default
            ones.

    Raises:
        ConfigurationError: They are not as many, not different, without 0, or not the model's.
    """
    known = saved.spaces.changes
    grid = tuple(float(change) for change in actions or known or DEFAULT_ACTIONS)
    if known is not None and grid != known:
        raise ConfigurationError(
            f"{saved.origin} was trained with the action grid {known}, and is to be exported with "
            f"{grid}. Leave the actions out: the model has them."
        )
    if len(grid) != count:
        raise ConfigurationError(
            f"{saved.origin} has {count} actions and the action grid {len(grid)}: {grid}. Name "
            "the environment's own changes of log2(batch size), in its order (--actions)."
        )
    if 0.0 not in grid or len(set(grid)) != count or not np.isfinite(grid).all():
        raise ConfigurationError(
            f"The action grid needs different finite numbers and 0 (stay) among them, got {grid}."
        )
    return grid
