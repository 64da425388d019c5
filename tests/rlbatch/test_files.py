"""Files that are whole or not there, and folders with one writer."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from rlbatch.cli._shared import require_new_folder
from rlbatch.files import is_temporary, replacing, write_atomically


@pytest.mark.parametrize("content", ["näher\n", b"\x00\xff"])
def test_what_is_written_is_read_and_nothing_is_left_beside_it(
    tmp_path: Path, content: str | bytes
) -> None:
    path = tmp_path / "a.txt"
    write_atomically(path, "before")
    write_atomically(path, content)
    assert path.read_bytes() == (content.encode() if isinstance(content, str) else content)
    assert list(tmp_path.iterdir()) == [path]


def interrupted(path: Path) -> None:
    with replacing(path) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt


def test_a_writer_that_fails_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    with replacing(path) as temporary:
        np.savez(temporary, x=np.arange(3))
    with pytest.raises(KeyboardInterrupt):
        interrupted(path)
    with np.load(path) as stored:
        assert stored["x"].tolist() == [0, 1, 2]
    assert list(tmp_path.iterdir()) == [path]


def test_a_killed_writer_leaves_the_old_file_and_what_does_not_count(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_atomically(path, "old")
    program = (
        "import sys, time\nfrom pathlib import Path\nfrom rlbatch.files import replacing\n"
        "with replacing(Path(sys.argv[1])) as temporary:\n"
        "    temporary.write_text('new')\n    time.sleep(60)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", program, str(path)])
    while len(list(tmp_path.iterdir())) < 2:
        assert process.poll() is None
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert path.read_text() == "old"
    (left,) = (entry for entry in tmp_path.iterdir() if entry != path)
    assert is_temporary(left)
    assert not is_temporary(path)
    require_new_folder(tmp_path, but=["a.txt"])
