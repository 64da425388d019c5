"""Whatever is left of a log is read, and one sentence says what is missing."""

from __future__ import annotations

import json
import os
import random
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rlbatch.errors import EpisodeLogError
from rlbatch.inspect.overview import summary_lines, title
from rlbatch.inspect.reading import read_log, read_logs
from rlbatch.inspect.series import points
from rlbatch.inspect.table import DecisionTable
from rlbatch.log.episode_log import read_episode
from tests.helpers import fuzzed
from tests.rlbatch.inspect.made import EXAMPLE, make_record, write_log


def lines_of(*changes: dict[str, Any]) -> bytes:
    """Return lines as a run writes them, with changed fields; None removes one."""
    lines: list[str] = []
    for index, change in enumerate(changes):
        values = json.loads(make_record(index).to_json())
        values.update(change)
        kept = {name: value for name, value in values.items() if value is not ...}
        lines.append(json.dumps(kept) + "\n")
    return "".join(lines).encode()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_log(tmp_path / "log", [make_record(index) for index in range(4)])


def show(folder: Path) -> str:
    """Print everything that there is to print."""
    shown: list[str] = []
    for log in read_logs([folder]):
        found = points(log)
        table = DecisionTable(80, found)
        shown += [title(log), *summary_lines(log, 80), *table.head(), *table.rows(found)]
    return "\n".join(shown)


def test_a_whole_log_is_read_as_by_the_strict_reader() -> None:
    log, strict = read_log(EXAMPLE), read_episode(EXAMPLE)

    assert log.records == strict.records or repr(log.records) == repr(strict.records)
    assert log.run == strict.run
    assert (log.problems, log.torn) == ((), False)


def test_a_log_cut_at_any_byte_holds_every_whole_line(folder: Path) -> None:
    path = folder / "decisions.jsonl"
    whole = path.read_bytes()
    for end in range(len(whole) + 1):
        path.write_bytes(whole[:end])
        log = read_log(folder)
        # A line without its newline is whole all the same.
        complete = [line for line in whole[:end].split(b"\n") if line.endswith(b"}")]
        expected = [index for index, line in enumerate(complete) if _is_json(line)]
        assert [record.index for record in log.records] == expected
        assert log.torn != _ends_whole(whole[:end])
        assert all("incomplete" in problem for problem in log.problems)


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True


def _ends_whole(content: bytes) -> bool:
    rest = content.rpartition(b"\n")[2]
    return not rest or _is_json(rest)


@pytest.mark.parametrize(
    ("changes", "problem", "kept"),
    [
        (({}, {"batch_size": "many"}, {}), "Line 2 had missing or wrong fields", 3),
        (({}, {"step": ...}), "Line 2 had missing or wrong fields", 2),
        (({"event": "resize"}, {}), "Line 1 had missing or wrong fields", 2),
        (({}, {"cost": [1]}), "Line 2 had missing or wrong fields", 2),
        (({}, {"signals": {"train_loss": 1.0, "odd": {"a": 1}}}), "Line 2 had missing", 2),
        (({"index": 0}, {"index": 5}), "Lines are missing", 2),
        (({"later": [1, 2]}, {}), None, 2),
    ],
)
def test_lines_are_repaired(
    changes: tuple[dict[str, Any], ...], problem: str | None, kept: int, folder: Path
) -> None:
    (folder / "decisions.jsonl").write_bytes(lines_of(*changes))

    log = read_log(folder)

    assert len(log.records) == kept
    assert [p for p in log.problems if problem and problem in p] or problem is None
    assert len(log.problems) == (problem is not None)
    assert show(folder)


def test_what_a_repaired_line_says_is_kept(folder: Path) -> None:
    changes = {"event": "resize", "batch_size": 128, "cost": "a lot", "reasons": ["why"]}
    changes["signals"] = {"train_loss": 1.5, "odd": {"a": 1}}
    (folder / "decisions.jsonl").write_bytes(lines_of({}, changes))

    record = read_log(folder).records[1]

    assert (record.batch_size, record.signals) == (128, {"train_loss": 1.5})
    assert record.reasons == ("event 'resize'", "why")
    assert str(record.cost) == "nan"


@pytest.mark.parametrize(
    ("content", "kept", "problem"),
    [
        (b"rubbish\n" + lines_of({}), 1, "Line 1 cannot be read and is left out."),
        (lines_of({}, {}) + b"[1]\n7\nnull\n", 2, "3 lines (3, 4, 5) cannot be read"),
        (lines_of({"reasons": ["XX"]}).replace(b"XX", b"\xff\xfe"), 1, "no UTF-8"),
        (b"{" * 100_000 + b"\n" + lines_of({}), 1, "Line 1 cannot be read"),
        (b'{"step": 1' + b"0" * 5000 + b"}\n" + lines_of({}), 1, "Line 1 cannot be read"),
        (lines_of({"step": 10**400, "samples_seen": 1}), 1, "had missing or wrong fields"),
        (lines_of({}) + b"\0" * 512, 1, "The last line is incomplete"),
        (lines_of({}, {}) + lines_of({}), 2, "The file holds 2 runs"),
    ],
)
def test_bytes_that_are_no_log(content: bytes, kept: int, problem: str, folder: Path) -> None:
    (folder / "decisions.jsonl").write_bytes(content)

    log = read_logs([folder])[0]

    assert len(log.records) == kept
    assert len(log.problems) == 1
    assert problem in log.problems[0]
    assert show(folder)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "There is no run.json"),
        (b"{", "run.json is not valid JSON"),
        (b"[]", "run.json was not written by rlbatch"),
        (b'{"format": "other", "task": "t"}', "run.json was not written by rlbatch"),
        (b'{"format": "rlbatch.episode", "schema_version": 9}', "schema version 9"),
        (b'{"format": "rlbatch.episode", "schema_version": 1, "context": 3}', None),
        (
            b'{"format": "rlbatch.episode", "schema_version": 1, "context": {"learning_rate": []},'
            b' "action_grid": ["a"], "config": 1, "task": {"a": 1}, "seed": NaN}',
            None,
        ),
    ],
)
def test_a_head_that_cannot_be_read(
    content: bytes | None, problem: str | None, folder: Path
) -> None:
    path = folder / "run.json"
    path.unlink()
    if content is not None:
        path.write_bytes(content)

    log = read_log(folder)

    assert len(log.records) == 4
    assert [problem in text for text in log.problems if problem] == [True] * (problem is not None)
    assert show(folder)


def test_no_run_at_all(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(EpisodeLogError, match="no such folder"):
        read_logs([tmp_path / "nowhere"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(EpisodeLogError, match="is no episode log"):
        read_logs([tmp_path / "empty"])
    (folder / "run.json").write_bytes(b"?")
    (folder / "decisions.jsonl").write_bytes(b"?\n")
    with pytest.raises(EpisodeLogError, match="nothing that can be read"):
        read_logs([folder])


def test_runs_of_one_name_are_told_apart(tmp_path: Path, folder: Path) -> None:
    for parent in ("a", "b"):
        shutil.copytree(folder, tmp_path / parent / "log")

    names = [log.name for log in read_logs([tmp_path / "a" / "log", tmp_path / "b" / "log"])]
    assert names == ["a/log", "b/log"]
    assert len({log.name for log in read_logs([folder, folder])}) == 2


def test_a_folder_of_logs_and_a_file_of_one_are_found(tmp_path: Path, folder: Path) -> None:
    shutil.copytree(folder, tmp_path / "other")

    assert [log.name for log in read_logs([tmp_path])] == ["log", "other"]
    assert read_log(folder / "decisions.jsonl").name == "log"


def test_escape_sequences_in_every_text_are_shown_and_not_obeyed(tmp_path: Path) -> None:
    evil = "\x1b]0;title\x07\x1b[2J\x9b31m\u202e"
    records = [make_record(0, reasons=[evil], signals={evil: 1.0}, batch_size=128)]
    folder = write_log(tmp_path / "log", records, task=evil, policy=evil, seed=evil)

    assert not {"\x1b", "\x07", "\x9b", "\u202e"} & set(show(folder))


@pytest.fixture
def quick_path(tmp_path: Path) -> Iterator[Path]:
    """Return a folder in memory, where there is one: thousands of files take their time."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        yield Path(folder)


@pytest.mark.slow
def test_damage_of_any_kind_raises_nothing(quick_path: Path) -> None:
    """Ten thousand damaged logs, of which everything is printed."""
    rng = random.Random(0)
    head = json.dumps({**json.loads((EXAMPLE / "run.json").read_bytes()), "versions": {}}).encode()
    signals = {
        "train_loss": 1.0,
        "grad_sqr": 1.0,
        "noise_trace": 9.0,
        "step_cost_curve": [0.0, 1.0],
    }
    lines = lines_of({"signals": signals, "reasons": ["why"]}, {"batch_size": 128})
    folder = quick_path / "log"
    folder.mkdir()
    read = 0
    count = fuzzed(10_000)
    for _ in range(count):
        (folder / "run.json").write_bytes(_damaged(head, rng))
        (folder / "decisions.jsonl").write_bytes(_damaged(lines, rng))
        try:
            shown = show(folder)
        except EpisodeLogError:
            continue
        read += 1
        assert "\x1b" not in shown
    assert read > 0.7 * count


_SPICE = (b"\x1b[2J", b"\xff", b"\0", b"1e999", b"-1", b"null", b"{}", b"[]", b'"', b"NaN", b"\n")


def _damaged(content: bytes, rng: random.Random) -> bytes:
    for _ in range(rng.randrange(4)):
        at = rng.randrange(len(content) + 1)
        kind = rng.randrange(4)
        if kind == 0:
            content = content[:at]
        elif kind == 1:
            content = content[:at] + rng.choice(_SPICE) + content[at:]
        elif kind == 2:
            content = content[:at] + rng.choice(_SPICE) + content[at + rng.randrange(1, 20) :]
        else:  # a whole value becomes another
            parts = content.split(b",")
            place = rng.randrange(len(parts))
            key, colon, _ = parts[place].partition(b":")
            parts[place] = key + colon + rng.choice(_SPICE)
            content = b",".join(parts)
    return content
