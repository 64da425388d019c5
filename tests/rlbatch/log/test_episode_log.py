"""The episode log under ordinary use, resumption, crashes and full disks."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rlbatch.errors import EpisodeLogError
from rlbatch.log.decision_record import DecisionRecord
from rlbatch.log.episode_log import EpisodeLog, read_episode
from rlbatch.log.episode_reader import EpisodeLines

RUN = {"task": "digits-mlp", "policy": "fixed:64", "seed": 3, "limits": {"max_batch_size": 512}}


def make_record(index: int, batch_size: int = 64) -> DecisionRecord:
    return DecisionRecord(
        index=index,
        event="decision",
        step=10 * index,
        effective_step=10 * index + 2,
        epoch=index / 4,
        samples_seen=640 * index,
        cost=1.5 * index,
        batch_size_before=32,
        batch_size=batch_size,
        signals={"train_loss": 1 / (1 + index), "noise_trace": float("nan")},
        observation=[0.1, -0.2],
        probabilities=[0.25, 0.75],
        reasons=["noise scale above the batch size"],
    )


def write_log(folder: Path, count: int) -> None:
    with EpisodeLog(folder, RUN, tensorboard=False) as log:
        for index in range(count):
            log.write(make_record(index))


def indices(folder: Path) -> list[int]:
    return [record.index for record in read_episode(folder).records]


def test_reading_gives_back_what_was_written(tmp_path: Path) -> None:
    write_log(tmp_path / "new" / "log", 3)

    episode = read_episode(tmp_path / "new" / "log")

    assert [repr(r) for r in episode.records] == [repr(make_record(i)) for i in range(3)]
    assert not episode.torn
    assert episode.run["schema_version"] == 1
    assert {key: episode.run[key] for key in RUN} == RUN
    assert {"python", "torch", "numpy", "rlbatch"} <= episode.run["versions"].keys()


def test_each_line_can_be_read_before_the_log_is_closed(tmp_path: Path) -> None:
    with EpisodeLog(tmp_path, RUN) as log:
        for count in range(3):
            assert len(read_episode(tmp_path).records) == log.position == count
            log.write(make_record(count))


def test_run_info_may_name_versions_but_not_the_logs_own_keys(tmp_path: Path) -> None:
    EpisodeLog(tmp_path / "a", {"versions": {"my-lib": "2"}}).close()
    assert read_episode(tmp_path / "a").run["versions"]["my-lib"] == "2"

    with pytest.raises(EpisodeLogError, match="may not hold format, schema_version"):
        EpisodeLog(tmp_path / "b", {"schema_version": 3, "format": "mine"})
    assert not (tmp_path / "b").exists()


def test_an_existing_log_is_not_overwritten(tmp_path: Path) -> None:
    write_log(tmp_path, 2)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    with pytest.raises(EpisodeLogError, match=r"already holds .*resume=True"):
        EpisodeLog(tmp_path, RUN)

    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_resume_goes_on_and_keeps_what_ran(tmp_path: Path) -> None:
    write_log(tmp_path, 2)

    with EpisodeLog(tmp_path, {"task": "another"}, resume=True) as log:
        assert log.position == 2
        log.write(make_record(2))

    assert indices(tmp_path) == [0, 1, 2]
    assert read_episode(tmp_path).run["task"] == "digits-mlp"


def test_resume_starts_a_log_where_none_is(tmp_path: Path) -> None:
    with EpisodeLog(tmp_path, RUN, resume=True) as log:
        log.write(make_record(0))

    assert indices(tmp_path) == [0]


def test_resume_from_a_checkpoint_equals_a_run_without_a_break(tmp_path: Path) -> None:
    write_log(tmp_path / "whole", 9)
    write_log(tmp_path / "broken", 7)
    checkpoint = 4

    with EpisodeLog(tmp_path / "broken", RUN, resume=True) as log:
        log.truncate_to(checkpoint)
        assert log.position == checkpoint
        for index in range(checkpoint, 9):
            log.write(make_record(index))

    lines = [(tmp_path / name / "decisions.jsonl").read_bytes() for name in ("whole", "broken")]
    assert lines[0] == lines[1]


@pytest.mark.parametrize("position", [-1, 3])
def test_a_checkpoint_ahead_of_the_log_is_refused(tmp_path: Path, position: int) -> None:
    write_log(tmp_path, 2)

    with (
        EpisodeLog(tmp_path, RUN, resume=True) as log,
        pytest.raises(EpisodeLogError, match=rf"after {position} lines, .* holds 2: .*gap"),
    ):
        log.truncate_to(position)

    assert indices(tmp_path) == [0, 1]


@pytest.mark.parametrize("index", [0, 2])
def test_a_gap_or_a_duplicate_is_refused_when_written(tmp_path: Path, index: int) -> None:
    with EpisodeLog(tmp_path, RUN) as log:
        log.write(make_record(0))
        with pytest.raises(EpisodeLogError, match=rf"has index 1, got .* index {index}"):
            log.write(make_record(index))

    assert indices(tmp_path) == [0]


def test_a_closed_log_says_so(tmp_path: Path) -> None:
    log = EpisodeLog(tmp_path, RUN)
    log.close()
    log.close()

    with pytest.raises(EpisodeLogError, match="is closed"):
        log.write(make_record(0))


# ---- torn and damaged logs


def test_every_cut_of_the_last_line_is_tolerated_and_repaired(tmp_path: Path) -> None:
    write_log(tmp_path, 3)
    path = tmp_path / "decisions.jsonl"
    whole = path.read_bytes()
    start = whole[:-1].rindex(b"\n") + 1

    for end in range(start, len(whole)):
        path.write_bytes(whole[:end])
        episode = read_episode(tmp_path)
        assert len(episode.records) == 2
        assert episode.torn == (end > start)

        with EpisodeLog(tmp_path, RUN, resume=True, tensorboard=False) as log:
            assert not read_episode(tmp_path).torn
            log.write(make_record(2))
        assert path.read_bytes() == whole


def test_a_last_block_of_zeros_is_tolerated(tmp_path: Path) -> None:
    write_log(tmp_path, 2)
    with (tmp_path / "decisions.jsonl").open("ab") as file:
        file.write(b"\0" * 40 + b"\n")

    assert indices(tmp_path) == [0, 1]
    assert read_episode(tmp_path).torn


@pytest.mark.parametrize(
    ("damage", "line", "message"),
    [
        (lambda lines: [lines[0], lines[1][:20], lines[2]], 2, "not valid JSON"),
        (lambda lines: [lines[0], lines[2]], 2, "expected index 1, got 2"),
        (lambda lines: [lines[0], lines[0], lines[1]], 2, "expected index 1, got 0"),
        (lambda lines: [*lines[:2], b"{}"], 3, "without batch_size"),
        (lambda lines: [b"hello", *lines], 1, "not valid JSON"),
    ],
)
def test_damage_elsewhere_is_named(
    tmp_path: Path, damage: Callable[[list[bytes]], list[bytes]], line: int, message: str
) -> None:
    write_log(tmp_path, 3)
    path = tmp_path / "decisions.jsonl"
    path.write_bytes(b"".join(part + b"\n" for part in damage(path.read_bytes().splitlines())))

    with pytest.raises(EpisodeLogError, match=rf"decisions.jsonl, line {line} .*{message}"):
        read_episode(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"no run.json in it"),
        ("{", "not valid JSON"),
        ("[]", "was not written by rlbatch"),
        ('{"task": "x"}', "was not written by rlbatch"),
        (
            '{"format": "rlbatch.episode", "schema_version": 2}',
            "schema version 2; this rlbatch reads version 1",
        ),
        ('{"format": "rlbatch.episode"}', "schema version None"),
    ],
)
def test_a_foreign_folder_is_refused(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "run.json").write_text(content)

    with pytest.raises(EpisodeLogError, match=message):
        read_episode(tmp_path)


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EpisodeLogError, match="no such folder"):
        read_episode(tmp_path / "nowhere")
    (tmp_path / "file").touch()
    with pytest.raises(EpisodeLogError, match="no such folder"):
        read_episode(tmp_path / "file")


def test_resuming_a_foreign_folder_changes_nothing_in_its_files(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{}")

    with pytest.raises(EpisodeLogError, match="was not written by rlbatch"):
        EpisodeLog(tmp_path, RUN, resume=True)

    assert (tmp_path / "run.json").read_text() == "{}"


# ---- full disks and forbidden folders


def test_a_folder_that_cannot_be_made_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(EpisodeLogError, match=r"Not a directory.*name another folder"):
        EpisodeLog(tmp_path / "file" / "log", RUN)


@pytest.mark.skipif(os.name != "posix", reason="permissions as on POSIX")
def test_a_folder_without_permission_says_what_to_do(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    user = os.geteuid()
    try:
        if user == 0:
            os.seteuid(65534)  # root may write anywhere
        with pytest.raises(EpisodeLogError, match=r"Permission denied.*permit writing"):
            EpisodeLog(tmp_path, RUN)
    finally:
        os.seteuid(user)
        tmp_path.chmod(0o700)


def test_a_disk_that_fills_up_in_a_line_leaves_the_log_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = EpisodeLog(tmp_path, RUN, tensorboard=False)
    log.write(make_record(0))
    real_write = os.write
    room = [50]

    def write_while_room(descriptor: int, content: bytes) -> int:
        if room[0] == 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        taken = min(room[0], len(content))
        room[0] -= taken
        return real_write(descriptor, content[:taken])

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", write_while_room)
        with pytest.raises(EpisodeLogError, match=r"No space left.*Make room"):
            log.write(make_record(1))

    assert room == [0]
    assert not read_episode(tmp_path).torn
    log.write(make_record(1))  # somebody made room
    log.close()
    assert indices(tmp_path) == [0, 1]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="RLIMIT_FSIZE as on Linux")
def test_a_real_size_limit_leaves_a_readable_log(tmp_path: Path) -> None:
    """The kernel itself refuses to let the file grow, in the middle of a line."""
    code = f"""
import resource, signal, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_episode_log import *
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
log = EpisodeLog({str(tmp_path)!r}, RUN, tensorboard=False)
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
try:
    for index in range(100):
        log.write(make_record(index))
except EpisodeLogError as error:
    print(log.position, error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    count, message = done.stdout.split(maxsplit=1)

    assert "Make room" in message
    assert indices(tmp_path) == list(range(int(count)))
    assert int(count) > 0
    assert not read_episode(tmp_path).torn


# ---- a real process that is killed

WRITER = f"""
import os, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_episode_log import *
folder, die_at_line, die_after_bytes = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
log = EpisodeLog(folder, RUN, tensorboard=False)
real_write = os.write
def write(descriptor, content):
    if log.position == die_at_line:
        real_write(descriptor, content[:die_after_bytes])
        os.kill(os.getpid(), signal.SIGKILL)
    return real_write(descriptor, content)
os.write = write
for index in range(10):
    log.write(make_record(index))
"""


@pytest.mark.parametrize(
    ("line", "size"), [(0, 0), (0, 1), (3, 0), (3, 1), (3, 100), (9, 200), (5, 10_000)]
)
def test_a_process_killed_in_a_write_leaves_a_readable_log(
    tmp_path: Path, line: int, size: int
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WRITER, str(tmp_path), str(line), str(size)], check=False
    )
    assert done.returncode == -signal.SIGKILL

    whole = size >= 10_000
    assert indices(tmp_path) == list(range(line + whole))
    assert read_episode(tmp_path).torn == (size > 0 and not whole)

    with EpisodeLog(tmp_path, RUN, resume=True) as log:  # the lock died with the process
        for index in range(log.position, 10):
            log.write(make_record(index))
    assert indices(tmp_path) == list(range(10))


ENDLESS_WRITER = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_episode_log import *
log = EpisodeLog(sys.argv[1], RUN, tensorboard=False)
for index in range(10**9):
    log.write(make_record(index))
"""


@pytest.mark.parametrize("lines", [1, 50, 700])
def test_a_process_killed_from_outside_leaves_a_readable_log(tmp_path: Path, lines: int) -> None:
    process = subprocess.Popen([sys.executable, "-c", ENDLESS_WRITER, str(tmp_path)])
    path = tmp_path / "decisions.jsonl"
    try:
        while not path.exists() or path.read_bytes().count(b"\n") < lines:
            assert process.poll() is None
            time.sleep(0.001)
    finally:
        process.kill()
        process.wait()

    found = indices(tmp_path)
    assert found == list(range(len(found)))
    assert len(found) >= lines


def test_a_process_killed_before_run_json_was_in_place_leaves_a_free_folder(
    tmp_path: Path,
) -> None:
    code = f"""
import os, pathlib, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_episode_log import *
pathlib.Path.replace = lambda self, target: os.kill(os.getpid(), signal.SIGKILL)
EpisodeLog({str(tmp_path)!r}, RUN)
"""
    done = subprocess.run([sys.executable, "-c", code], check=False)
    assert done.returncode == -signal.SIGKILL

    write_log(tmp_path, 1)
    assert indices(tmp_path) == [0]


@pytest.mark.skipif(os.name != "posix", reason="record locks")
def test_a_second_process_is_refused_while_the_first_writes(tmp_path: Path) -> None:
    code = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_episode_log import *
try:
    EpisodeLog({str(tmp_path)!r}, RUN, resume=True)
except EpisodeLogError as error:
    print(error)
"""

    def second() -> str:
        command = [sys.executable, "-c", code]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    with EpisodeLog(tmp_path, RUN) as log:
        log.write(make_record(0))
        read_episode(tmp_path)  # reading in the same process must not end the lock
        assert "Another process is writing" in second()
    assert second() == ""


# ---- TensorBoard


def curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Read the events with TensorBoard's own loader."""
    from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

    found: dict[str, list[tuple[int, float]]] = {}
    for path in sorted(folder.glob("events.out.tfevents.*")):
        events: Any = LegacyEventFileLoader(str(path)).Load()
        for event in events:
            for value in event.summary.value:
                found.setdefault(value.tag, []).append((event.step, value.simple_value))
    return found


def test_tensorboard_shows_the_log_over_samples(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    with EpisodeLog(tmp_path, RUN) as log:
        for index, size in enumerate([64, 128, 256]):
            log.write(make_record(index, size))

    found = curves(tmp_path)
    assert found["batch_size/applied"] == [(0, 64.0), (640, 128.0), (1280, 256.0)]
    assert [step for step, _ in found["signals/train_loss"]] == [0, 640, 1280]
    assert "signals/noise_trace" not in found  # NaN throughout


def test_tensorboard_follows_a_resume(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    foreign = tmp_path / "events.out.tfevents.1.somebody"
    with EpisodeLog(tmp_path, RUN) as log:
        foreign.touch()
        for index in range(3):
            log.write(make_record(index, 64))

    with EpisodeLog(tmp_path, RUN, resume=True) as log:
        log.truncate_to(1)
        log.write(make_record(1, 512))

    assert foreign.exists()
    foreign.unlink()
    assert curves(tmp_path)["batch_size/applied"] == [(0, 64.0), (640, 512.0)]


def test_tensorboard_gets_no_control_characters(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    with EpisodeLog(tmp_path, RUN, tensorboard=False) as log:
        log.write(replace(make_record(0), signals={"\x1b]0;owned\x07": 1.0}))
    with EpisodeLog(tmp_path, RUN, resume=True) as log:  # a log from elsewhere, gone on with
        log.write(make_record(1))

    found = curves(tmp_path)
    assert "signals/\\x1b]0;owned\\x07" in found
    assert all(tag.isprintable() for tag in found)


def test_the_log_needs_no_tensorboard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("tensorboard", "tensorboard.compat.proto.event_pb2"):
        monkeypatch.setitem(sys.modules, name, None)

    with EpisodeLog(tmp_path, RUN) as log:
        log.write(make_record(0))

    assert indices(tmp_path) == [0]
    assert not list(tmp_path.glob("events*"))


def test_curves_that_cannot_be_written_do_not_stop_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.summary.writer.record_writer import RecordWriter

    def full(self: object, data: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with EpisodeLog(tmp_path, RUN) as log:
        with monkeypatch.context() as patch:
            patch.setattr(RecordWriter, "write", full)
            with pytest.warns(RuntimeWarning, match=r"No more TensorBoard curves.*No space left"):
                log.write(make_record(0))
        log.write(make_record(1))

    assert indices(tmp_path) == [0, 1]


def test_lines_are_strict_json(tmp_path: Path) -> None:
    write_log(tmp_path, 2)

    def refuse(word: str) -> Any:
        raise AssertionError(f"{word} is not JSON")

    for line in (tmp_path / "decisions.jsonl").read_text().splitlines():
        assert json.loads(line, parse_constant=refuse)["signals"]["noise_trace"] == "NaN"


def test_lines_are_read_one_by_one(tmp_path: Path) -> None:
    write_log(tmp_path, 3)
    file = tmp_path / "decisions.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(lines[0] + lines[1] + b"damaged\n" + lines[2])

    read = iter(EpisodeLines(tmp_path))
    found = [next(read), next(read)]  # also where a later line cannot be read
    with pytest.raises(EpisodeLogError, match="line 3 is damaged"):
        next(read)

    assert [(record.index, size) for record, size in found] == [
        (0, len(lines[0])),
        (1, len(lines[1])),
    ]
