"""Check rlbatch on one GPU and measure there what only a GPU shows, in nine minutes.

    python scripts/check_gpu.py --out out/gpu
    python scripts/check_gpu.py --out out/rehearsal --device cpu --tiny

The parts, in the order in which they matter: the tests that need a GPU; whether the host waits
within a chunk; what the controller costs a step; step times over batch sizes, as profiles named
after the card; mixed precision, compiled models and memory; a small language model in real
seconds. Each runs in a process of its own and writes its file as it goes: one that fails, hangs or
has no time left keeps what it has, and the next one runs. `summary.md` grows with them.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from rlbatch.agents.gpu.parts import PARTS, Part, part_named, seconds_of
from rlbatch.agents.gpu.report import (
    CHECKS,
    FAILED,
    PartSettings,
    Report,
    as_markdown,
    device_name,
)
from rlbatch.files import write_atomically

_MINUTES = 9.0
_GRACE = 5.0  # seconds between asking a part to end and making it


def main() -> int:
    """Run the parts that were asked for; 1 if one of them, or one of its checks, failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="a rehearsal, as small as can be")
    parser.add_argument("--minutes", type=float, default=_MINUTES, help="for all parts together")
    parser.add_argument("--parts", nargs="+", choices=[part.name for part in PARTS])
    parser.add_argument("--only", help=argparse.SUPPRESS)  # this process runs one part
    parser.add_argument("--seconds", type=float, default=0.0, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error("There is no CUDA device here. Rehearse with --device cpu --tiny.")
    arguments.out.mkdir(parents=True, exist_ok=True)
    if arguments.only:
        return run_part(part_named(arguments.only), device, arguments)
    return run_all(device, arguments)


def run_part(part: Part, device: torch.device, arguments: Any) -> int:
    """Run one part in this process."""
    torch.set_num_threads(max(1, min(4, os.cpu_count() or 1)) if device.type == "cuda" else 1)
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", torch.cuda.current_device())
    path = arguments.out / f"{part.name}.json"
    settings = PartSettings(device, arguments.tiny, arguments.seconds, path)
    part.load()(settings, Report(path, part.name, device))
    return 0


def run_all(device: torch.device, arguments: Any) -> int:
    """Run the parts one after the other, each with its share of the time."""
    began = time.monotonic()
    end = began + 60.0 * arguments.minutes
    chosen = [part for part in PARTS if not arguments.parts or part.name in arguments.parts]
    title = f"# {device_name(device)}, torch {torch.__version__}{', rehearsal' * arguments.tiny}"
    sections = [title, ""]
    bad = False
    for part in chosen:
        left = end - time.monotonic() - _GRACE
        seconds = seconds_of(part, left, arguments.minutes / _MINUTES)
        print(f"=== {part.name}: {seconds:.0f} s at most", flush=True)
        started = time.monotonic()
        said = "no time was left" if seconds < 1.0 else start(part, seconds, arguments)
        spent = time.monotonic() - started
        section, failed = outcome(arguments.out / f"{part.name}.json", part, said, spent)
        bad = bad or failed
        sections.append(section)
        write_atomically(arguments.out / "summary.md", "\n".join(sections) + "\n")
    print("\n".join(sections))
    print(f"{time.monotonic() - began:.0f} s in all")
    return int(bad)


def start(part: Part, seconds: float, arguments: Any) -> str:
    """Run a part in a process of its own; return what is wrong, or nothing."""
    (arguments.out / f"{part.name}.json").unlink(missing_ok=True)
    command = [sys.executable, str(Path(__file__).resolve()), "--only", part.name]
    command += ["--out", str(arguments.out), "--device", arguments.device]
    command += ["--seconds", str(max(seconds - _GRACE, 1.0)), *["--tiny"] * arguments.tiny]
    with (arguments.out / "log.txt").open("ab") as log:
        log.write(f"\n===== {part.name}\n".encode())
        log.flush()
        root = str(Path(__file__).resolve().parents[1])
        paths = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
        process = subprocess.Popen(
            command,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # so that what it starts ends with it
            env={**os.environ, "PYTHONPATH": paths, "PYTHONUNBUFFERED": "1"},
        )
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            stop(process)
    if code is None:
        return f"stopped after {seconds:.0f} s; what it had found by then is here"
    return "" if code == 0 else f"ended with exit code {code}, see log.txt"


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a part's processes, if any is left."""
    for how in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, how)
            process.wait(_GRACE / 2)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue


def outcome(path: Path, part: Part, said: str, seconds: float) -> tuple[str, bool]:
    """Return a part's section of the summary, and whether something failed."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        content = {"part": part.name, "notes": [], "tables": {}}
    checks = content["tables"].get(CHECKS, [])
    failed = [check["check"] for check in checks if check["result"] == FAILED]
    notes = [f"{seconds:.0f} s. {len(checks)} checks, {len(failed)} failed."]
    if said:
        notes.append(f"**This part {said}.**")
    content["notes"] = [*notes, *content["notes"]]
    return as_markdown(content), bool(said or failed)


if __name__ == "__main__":
    sys.exit(main())
