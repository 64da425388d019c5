"""The field suite: training jobs as people have them, one module a family.

Half of the families are for development. The other half is locked: it is run for the tables of
results only, so that these say something about jobs that no decision of the design has seen.
docs/field-suite.md lists each time that the locked half was looked at.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from rlbatch.errors import ConfigurationError, UnknownNameError

if TYPE_CHECKING:
    from rlbatch.envs.task import Task
    from rlbatch.envs.tasks.field.job import FieldJob

PREFIX = "field:"
"""Of the names of the suite's tasks."""

DEVELOPMENT: tuple[str, ...] = (
    "shapes-cnn",
    "source-gru",
    "wide-table",
    "deep-teacher",
    "autoencoder",
    "source-transformer",
)
LOCKED: tuple[str, ...] = (
    "texture-cnn",
    "topics-lstm",
    "bytes-transformer",
    "denoiser",
    "mixed-table",
    "ratings",
)
QUICK: tuple[str, ...] = ("wide-table", "deep-teacher", "autoencoder", "shapes-cnn")
"""Of the development half: what runs in well under an hour on one core."""

SELECTIONS: dict[str, tuple[str, ...]] = {
    "field": (*DEVELOPMENT, *LOCKED),
    "field:dev": DEVELOPMENT,
    "field:locked": LOCKED,
    "field:quick": QUICK,
}
"""Suites by the names that the command line knows."""


def field(spec: str) -> Task:
    """Return the task of a name such as `field:shapes-cnn`.

    Raises:
        UnknownNameError: There is no such job.
    """
    return field_job(spec).task()


def field_job(spec: str) -> FieldJob:
    """Return the job behind `field:NAME`.

    Raises:
        UnknownNameError: There is no such job.
    """
    name = spec.removeprefix(PREFIX)
    if name not in SELECTIONS["field"]:
        raise UnknownNameError("field task", name, SELECTIONS["field"])
    module = importlib.import_module(f"{__name__}.{name.replace('-', '_')}")
    return module.JOB


def selected(suite: str) -> tuple[str, ...]:
    """Return the task names of a suite.

    Raises:
        ConfigurationError: There is no suite of that name.
    """
    if suite not in SELECTIONS:
        known = ", ".join(SELECTIONS)
        raise ConfigurationError(f"There is no suite {suite!r}. Known: {known}.")
    return tuple(f"{PREFIX}{name}" for name in SELECTIONS[suite])
