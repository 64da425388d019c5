"""Built-in tasks: small jobs that train in seconds on one CPU thread, one file a family.

Each family has two variants: AdamW (the family's name) and SGD with momentum (that and `-sgd`).
Nothing is imported until a task is asked for.
"""

from __future__ import annotations

from pkgutil import iter_modules

from rlbatch.envs.tasks import families

TASK_FAMILIES: dict[str, str] = {
    module.name.replace("_", "-"): f"{families.__name__}.{module.name}"
    for module in iter_modules(families.__path__)
}
"""Name of each family to its module."""

TASK_VARIANTS: dict[str, tuple[str, str]] = {
    f"{family}{suffix}": (module, variant)
    for family, module in TASK_FAMILIES.items()
    for suffix, variant in (("", "adamw"), ("-sgd", "sgd"))
}
"""Task name to the module of its family, and to the family's method that makes it."""

RANDOM_KINDS: dict[str, str] = {
    "random": "random_perceptron",
    "random-long": "random_perceptron",
    "random-transformer": "random_transformer",
    "field": "field",
}
"""Prefix of a name (random tasks, the field suite) to the module, and to the function in it."""
