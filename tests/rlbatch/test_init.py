"""The public names of the package."""

from __future__ import annotations

import importlib
import re
from importlib import metadata
from pathlib import Path

import pytest

import rlbatch


@pytest.mark.parametrize("name", sorted(rlbatch._PUBLIC))
def test_every_public_name_is_what_its_module_defines(name: str) -> None:
    module = importlib.import_module(rlbatch._PUBLIC[name])

    assert getattr(rlbatch, name) is getattr(module, name)
    assert name in dir(rlbatch)


def test_type_checkers_see_the_same_names_in_the_same_modules() -> None:
    source = Path(rlbatch.__file__).read_text(encoding="utf-8")
    seen = re.findall(r"^    from (\S+) import (\w+) as (\w+)", source, flags=re.MULTILINE)

    assert all(original == alias for _, original, alias in seen)
    assert {name: module for module, name, _ in seen} == rlbatch._PUBLIC


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = rlbatch.nothing
    with pytest.raises(ImportError):
        exec("from rlbatch import nothing")


def test_the_version_is_the_installed_one() -> None:
    assert metadata.version("rlbatch") == rlbatch.__version__
