"""What README and docs show is run: complete programs, the task file, commands, links."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"```python\n(.*?)```", re.DOTALL)


def blocks(first_line: str) -> list[str]:
    found = [b for page in PAGES for b in BLOCK.findall(page.read_text())]
    return [b for b in found if b.startswith(first_line)]


@pytest.mark.parametrize("program", blocks("# complete program"))
def test_complete_programs_run(program: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


@pytest.mark.slow
def test_the_task_file_of_the_docs_trains(tmp_path: Path) -> None:
    (text,) = blocks("# my_task.py")
    (tmp_path / "my_task.py").write_text(text)
    command = "run --task my_task.py:make --policy goodput --profile cpu --out out"
    done = subprocess.run(
        [sys.executable, "-m", "rlbatch", *command.split()],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "decisions.jsonl").is_file()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_every_command_shown_exists() -> None:
    shown = {word for page in PAGES for word in re.findall(r"`rlbatch ([a-z]+)", page.read_text())}
    known = {path.stem for path in (ROOT / "rlbatch" / "cli").glob("*.py")}
    assert shown
    assert shown <= known, shown - known
