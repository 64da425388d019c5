"""The pages name what is there: files in the table of folders, pages in the index."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROW = re.compile(r"^\| `([^`]+/)` \| (.*) \|$", re.MULTILINE)
PLACES = dict(ROW.findall((ROOT / "docs" / "architecture.md").read_text()))


@pytest.mark.parametrize("place", PLACES)
def test_every_file_that_the_table_of_folders_names_exists(place: str) -> None:
    for name in re.findall(r"`([\w./]+(?:\.py|/))`", PLACES[place]):
        assert (ROOT / place / name).exists(), f"{place} has no {name}"


def test_every_folder_with_code_has_a_row() -> None:
    folders = {
        path.parent.relative_to(ROOT).as_posix() + "/"
        for top in ("rlbatch", "envs", "agents", "scripts")
        for path in (ROOT / top).rglob("*.py")
        if not any(part.is_symlink() for part in path.parents)
    }
    assert folders == PLACES.keys()


def test_the_index_names_every_page() -> None:
    index = (ROOT / "docs" / "index.md").read_text()
    named = {(ROOT / "docs" / target).resolve() for target in re.findall(r"\]\((.+?)\)", index)}
    pages = set((ROOT / "docs").glob("*.md")) - {ROOT / "docs" / "index.md"}
    assert pages <= named
