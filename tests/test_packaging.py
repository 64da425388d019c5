"""What an installed rlbatch consists of: the archives are built and one is used."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DATA = ("weights.safetensors", "card.md", "profile.json", "text.xz", "curves.npz")


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build both archives, the wheel from the source archive, of a copy with some data files."""
    pytest.importorskip("build")
    copy = tmp_path_factory.mktemp("source") / "copy"
    copy.mkdir()
    for name in ("rlbatch", "envs", "agents"):
        ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
        shutil.copytree(ROOT / name, copy / name, symlinks=True, ignore=ignore)
    for name in ("pyproject.toml", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    (copy / "README.md").write_text("rlbatch\n")
    for name in DATA:
        (copy / "agents" / "pretrained" / name).write_bytes(b"data")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", "dist", "."]
    subprocess.run(command, cwd=copy, check=True, capture_output=True)
    return copy / "dist"


@pytest.mark.slow
def test_the_wheel_holds_one_package_with_its_data(archives: Path) -> None:
    (wheel,) = archives.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()

    assert {name.split("/")[0].split("-")[0] for name in names} == {"rlbatch"}
    assert len(names) == len(set(names))
    folders = [ROOT / "rlbatch" / part for part in ("", "envs", "agents")]
    expected = [path for folder in folders for path in folder.rglob("*.py")]
    assert {path.relative_to(ROOT).as_posix() for path in expected} <= set(names)
    assert {f"rlbatch/agents/pretrained/{name}" for name in DATA} <= set(names)
    assert "rlbatch/py.typed" in names
    page = ROOT / "rlbatch" / "inspect" / "report" / "assets"
    assets = {path.relative_to(ROOT).as_posix() for path in page.iterdir()}
    assert "rlbatch/inspect/report/assets/uplot-LICENSE.txt" in assets <= set(names)
    assert any(name.endswith("licenses/LICENSE") for name in names)


@pytest.mark.slow
def test_the_source_archive_holds_files_and_no_links(archives: Path) -> None:
    (source,) = archives.glob("*.tar.gz")
    with tarfile.open(source) as tar:
        members = tar.getmembers()

    assert not [member.name for member in members if member.issym() or member.islnk()]
    assert any(member.name.endswith("rlbatch/envs/task.py") for member in members)
    assert any(member.name.endswith("pretrained/weights.safetensors") for member in members)


@pytest.mark.slow
def test_the_wheel_can_be_imported_from_anywhere(archives: Path, tmp_path: Path) -> None:
    (wheel,) = archives.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(tmp_path)
    code = f"""
import sys
sys.path.insert(0, {str(tmp_path)!r})
import rlbatch, rlbatch.envs.task, rlbatch.log.episode_log
assert all({str(tmp_path)!r} in m.__file__ for m in (rlbatch, rlbatch.envs, rlbatch.envs.task))
import importlib.util
assert importlib.util.find_spec("envs") is None
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)
