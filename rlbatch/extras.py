"""Which optional package comes with which extra, and the error that says so.

The table follows `[project.optional-dependencies]` of pyproject.toml.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager

from rlbatch.errors import MissingExtraError

_CLI = {"tyro": "tyro", "rich": "rich", "threadpoolctl": "threadpoolctl"}
_TRAIN: Mapping[str, str] = {
    **_CLI,
    "gymnasium": "gymnasium",
    "stable_baselines3": "stable-baselines3",
    "cloudpickle": "cloudpickle",
    "sklearn": "scikit-learn",
    "tensorboard": "tensorboard",
}
_REPORT: Mapping[str, str] = {"matplotlib": "matplotlib", "rich": "rich"}

EXTRAS: Mapping[str, Mapping[str, str]] = {
    "cli": _CLI,
    "train": _TRAIN,
    "lightning": {"lightning": "lightning"},
    "transformers": {"transformers": "transformers", "accelerate": "accelerate"},
    "keras": {"keras": "keras", "tensorflow": "tensorflow"},
    "report": _REPORT,
    "data": {"pandas": "pandas", "pyarrow": "pyarrow"},
    "search": {**_TRAIN, **_REPORT, "optuna": "optuna"},
    "trackers": {"mlflow": "mlflow-skinny", "wandb": "wandb"},
    "ray": {**_TRAIN, "ray": "ray"},
    "energy": {"pynvml": "nvidia-ml-py"},
}
"""Extra to its packages, each a top-level module with the name under which it is installed."""


def missing_extra(error: ImportError, *preferred: str) -> MissingExtraError | None:
    """Return what to say where an import failed for want of an optional package, None otherwise.

    Args:
        error: From the import; a `MissingExtraError` is taken as well.
        preferred: Extras to name, where they bring the package, before any other.
    """
    if isinstance(error, MissingExtraError):
        module = _module_of(error.package)
    elif isinstance(error, ModuleNotFoundError):
        module = (error.name or "").partition(".")[0]
    else:
        return None
    for extra in (*preferred, *EXTRAS):
        package = EXTRAS[extra].get(module)
        if package is not None:
            return MissingExtraError(package, extra)
    return None


@contextmanager
def needs_extra(extra: str, package: str) -> Generator[None]:
    """Turn a failed import of the block into the error that names the extra.

    Args:
        extra: Whose packages are imported.
        package: What to name where the error does not tell which package is missing.

    Raises:
        MissingExtraError: An import of the block failed.
    """
    try:
        yield
    except ImportError as error:
        raise missing_extra(error, extra) or MissingExtraError(package, extra) from error


def _module_of(package: str) -> str:
    known = {name: module for extra in EXTRAS.values() for module, name in extra.items()}
    return known.get(package, package.replace("-", "_"))
