from __future__ import annotations

import json
import lzma
import shutil
from pathlib import Path

import pytest
import torch

from rlbatch.envs.tasks.text import DATA, padded, read_text
from rlbatch.errors import RlbatchError

FILES = ("char_lm.txt.xz", "language_id.json.xz", "translation.json.xz")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(DATA, tmp_path / "data"))


@pytest.mark.parametrize("name", FILES)
def test_returns_what_lies_in_the_file(name: str) -> None:
    assert read_text(name) == lzma.decompress((DATA / name).read_bytes()).decode()


def test_every_shipped_file_has_a_checksum_and_all_are_small() -> None:
    names = {path.name for path in DATA.glob("*.xz")}
    assert names == set(FILES) == set(json.loads((DATA / "checksums.json").read_text()))
    assert sum(path.stat().st_size for path in DATA.rglob("*") if path.is_file()) < 600_000


@pytest.mark.parametrize("name", FILES)
def test_refuses_a_modified_file(name: str, folder: Path) -> None:
    text = read_text(name, folder)
    (folder / name).write_bytes(lzma.compress((text + " ").encode()))  # a valid file, but another
    with pytest.raises(RlbatchError, match=f"{name} should have the SHA-256") as caught:
        read_text(name, folder)
    assert "Install rlbatch again" in str(caught.value)


def test_refuses_a_truncated_file(folder: Path) -> None:
    path = folder / FILES[0]
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(RlbatchError, match="SHA-256"):
        read_text(FILES[0], folder)


@pytest.mark.parametrize("missing", [FILES[0], "checksums.json"])
def test_names_a_missing_file(missing: str, folder: Path) -> None:
    (folder / missing).unlink()
    with pytest.raises(RlbatchError, match=missing):
        read_text(FILES[0], folder)


def test_refuses_a_file_without_checksum(folder: Path) -> None:
    (folder / "other.xz").write_bytes(lzma.compress(b"text"))
    with pytest.raises(RlbatchError, match="None"):
        read_text("other.xz", folder)


def test_padded_cuts_and_fills() -> None:
    expected = torch.tensor([[1, 2, 3], [4, 0, 0], [0, 0, 0]])
    assert torch.equal(padded([[1, 2, 3, 9], [4], []], 3), expected)
