"""How large the page of a long run is, and how a browser copes with it.

    python scripts/measure_page.py [--decisions 1000 10000 100000 1000000]

Makes up a log of so many decisions from the lines of `docs/example-log` (its size changes in 3% of
them), writes it to a temporary folder, calls `rlbatch report` on it and opens the page in Chromium,
headless and without a network (Debian: apt-get install chromium; CHROMIUM names another). Prints
one row of the table in docs/inspect.md for each length. `--lean` leaves out of the lines what the
policy saw and its probabilities, so that a million of them have 0.5 GB and not 2.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from playwright.sync_api import sync_playwright

from rlbatch.log.decision_record import dumps
from rlbatch.log.episode_reader import DECISIONS_FILE, RUN_FILE, read_episode

ROOT = Path(__file__).resolve().parents[1]
EXAMPLE = ROOT / "docs" / "example-log"
FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync")
HEAD = (
    "decisions|log|page|made in|its memory|opens in|heap|zoom|switch of the axis|"
    "hover: handled in, median / 95% / worst|frames while hovering, median / 95%"
)
LEAN = (
    *("steps", "chunk_cost", "grad_sqr", "grad_sqr_se", "noise_trace", "noise_trace_se"),
    "schedule_factor",
)
_EVERY = 33  # lines between two changes of the size: 3% of them
_MOVES = 120  # of the mouse

# Handles one move of the mouse over the first chart, layout included, and returns milliseconds.
HOVER = """
() => {
  const over = document.querySelector('[data-chart=loss] .u-over');
  const box = over.getBoundingClientRect(), taken = [];
  for (let move = 0; move < MOVES; move++) {
    const x = box.left + box.width * ((move * 37) % MOVES) / MOVES;
    const began = performance.now();
    const settings = {clientX: x, clientY: box.top + 40, bubbles: true, view: window};
    over.dispatchEvent(new MouseEvent('mousemove', settings));
    document.body.offsetHeight;
    taken.push(performance.now() - began);
  }
  return taken;
}
""".replace("MOVES", str(_MOVES))
FRAMES = """
() => {
  window.frames_ = []; let last = performance.now();
  const tick = () => {
    const now = performance.now(); window.frames_.push(now - last); last = now;
    requestAnimationFrame(tick);
  };
  requestAnimationFrame(tick);
}
"""
TWO_FRAMES = "() => new Promise(d => requestAnimationFrame(() => requestAnimationFrame(d)))"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    lengths = [1000, 10_000, 100_000, 1_000_000]
    parser.add_argument("--decisions", type=int, nargs="+", default=lengths)
    parser.add_argument("--lean", action="store_true", help="lines as short as a rule's may be")
    parser.add_argument("--keep", type=Path, help="folder for the pages; a temporary one if unset")
    arguments = parser.parse_args()
    print(f"| {' | '.join(HEAD.split('|'))} |\n|{'---|' * (HEAD.count('|') + 1)}")
    for count in arguments.decisions:
        with tempfile.TemporaryDirectory() as folder:
            row = measure(Path(folder), count, arguments)
        print(f"| {count:,} | {' | '.join(row)} |", flush=True)


def measure(folder: Path, count: int, arguments: argparse.Namespace) -> list[str]:
    """Return what the log of a length and its page take."""
    keep: Path | None = arguments.keep
    size = make_log(folder / "log", count, lean=arguments.lean)
    page = folder / "report.html"
    seconds, memory = make_page(folder / "log", page)
    shutil.rmtree(folder / "log")
    if keep is not None:
        keep.mkdir(parents=True, exist_ok=True)
        shutil.copy(page, keep / f"{count}.html")
    told = [megabytes(size), megabytes(page.stat().st_size), f"{seconds:.0f} s", megabytes(memory)]
    return told + open_page(page)


def make_log(folder: Path, count: int, *, lean: bool) -> int:
    """Write a log of so many decisions and return its bytes."""
    folder.mkdir()
    shutil.copy(EXAMPLE / RUN_FILE, folder / RUN_FILE)
    records = [r for r in read_episode(EXAMPLE).records if r.event == "decision"]
    templates = [json.loads(dumps(vars(record))) for record in records]
    for line in templates if lean else ():
        line |= {"observation": None, "probabilities": None, "reasons": ["rule: stay"]}
        line["signals"] = {name: line["signals"][name] for name in LEAN}
    size = 64
    with (folder / DECISIONS_FILE).open("w") as file:
        for index in range(count):
            after = size
            if index % _EVERY == _EVERY - 1:
                after = size * 2 if size < 512 else 64
            line = templates[index % len(templates)]
            line |= {
                **{"index": index, "step": 4 * index + 4, "effective_step": 4 * index + 4},
                **{"epoch": index / 50, "samples_seen": 256 * (index + 1)},
                **{"cost": 0.01 * (index + 1), "batch_size_before": size, "batch_size": after},
            }
            line["signals"] |= {
                "train_loss": 0.1 + 2 / (1 + index / 100),
                "val_loss": 0.2 + 2 / (1 + index / 100) if index % 4 == 0 else "NaN",
            }
            file.write(json.dumps(line, separators=(",", ":")) + "\n")
            size = after
    return (folder / DECISIONS_FILE).stat().st_size


def make_page(log: Path, page: Path) -> tuple[float, float]:
    """Return the seconds and the bytes of memory that `rlbatch report` takes."""
    command = [sys.executable, "-m", "rlbatch", "report", str(log), "-o", str(page)]
    began = time.perf_counter()
    process = subprocess.Popen(
        command, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.DEVNULL
    )
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"rlbatch report ended with {process.returncode}")
    return time.perf_counter() - began, usage.ru_maxrss * 1024.0


def open_page(path: Path) -> list[str]:
    """Return how long the page takes to open, to zoom, to switch and to follow the mouse."""
    executable = os.environ.get("CHROMIUM", "/usr/bin/chromium")
    with sync_playwright() as api:
        browser = api.chromium.launch(executable_path=executable, args=FLAGS)
        context = browser.new_context(viewport={"width": 1400, "height": 900}, offline=True)
        page = context.new_page()
        complaints: list[str] = []
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.set_default_timeout(120_000)
        began = time.perf_counter()
        page.goto(path.as_uri())
        page.wait_for_selector("html[data-ready]")
        opened = time.perf_counter() - began
        client = context.new_cdp_session(page)
        client.send("HeapProfiler.collectGarbage")
        heap = client.send("Runtime.getHeapUsage")["usedSize"]
        zoom = [click(page, "#zoom", "in") for _ in range(3)]
        switch = [click(page, "#axis", axis) for axis in ("samples", "cost", "step")]
        click(page, "#zoom", "all")
        handled, frames = page.evaluate(HOVER), hover(page)
        browser.close()
    if complaints:
        raise SystemExit(f"The page complains: {complaints}")
    return [
        f"{opened:.1f} s",
        megabytes(heap),
        f"{min(zoom):.0f} to {max(zoom):.0f} ms",
        f"{min(switch):.0f} to {max(switch):.0f} ms",
        f"{statistics.median(handled):.1f} / {high(handled):.1f} / {max(handled):.1f} ms",
        f"{statistics.median(frames):.0f} / {high(frames):.0f} ms",
    ]


def click(page: Any, group: str, value: str) -> float:
    """Return milliseconds until a button has had its effect, with the frame that shows it."""
    return page.locator(f"{group} button[value={value}]").evaluate(
        "async button => { const began = performance.now(); button.click();"
        f" await ({TWO_FRAMES})(); return performance.now() - began; }}"
    )


def hover(page: Any) -> list[float]:
    """Return the milliseconds of the frames while the mouse moves over a chart."""
    box = page.locator("[data-chart=loss] .u-over").bounding_box()
    page.evaluate(FRAMES)
    for move in range(_MOVES):
        page.mouse.move(box["x"] + box["width"] * move / _MOVES, box["y"] + 40)
    return page.evaluate("window.frames_")


def high(values: list[float]) -> float:
    """Return the 95% quantile."""
    return sorted(values)[int(0.95 * (len(values) - 1))]


def megabytes(count: float) -> str:
    """Return bytes for people."""
    return f"{count / 1e6:.0f} MB" if count >= 2e6 else f"{count / 1e3:.0f} kB"


if __name__ == "__main__":
    main()
