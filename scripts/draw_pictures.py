"""Makes the documentation's pictures of the page and of the terminal, from recorded logs.

    python scripts/draw_pictures.py

It needs Chromium (Debian: apt-get install chromium; CHROMIUM names another) and the package
playwright. `scripts/record_logs.py` records the logs.
"""

from __future__ import annotations

import html
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import sync_playwright

from rlbatch.inspect.reading import read_logs
from rlbatch.inspect.report.page import build_page

ROOT = Path(__file__).resolve().parents[1]
PICTURES = ROOT / "docs" / "pictures"
EXAMPLE, RULE = ROOT / "docs" / "example-log", ROOT / "docs" / "example-log-goodput"
FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync")
COLORS = 64  # of a picture: enough for lines and text, and small


def main() -> None:
    PICTURES.mkdir(exist_ok=True)
    executable = os.environ.get("CHROMIUM", "/usr/bin/chromium")
    with sync_playwright() as api, tempfile.TemporaryDirectory() as folder:
        browser = api.chromium.launch(executable_path=executable, args=FLAGS)
        one, two = read_logs([EXAMPLE]), read_logs([EXAMPLE, RULE])
        page = Path(folder) / "page.html"
        for name, logs, size, scheme in (
            ("report-desktop", two, (1280, 1000), "light"),
            ("report-tablet", two, (820, 1180), "light"),
            ("report-dark", one, (1280, 1000), "dark"),
            ("report-phone", two, (390, 1400), "light"),
        ):
            page.write_text(build_page(logs), encoding="utf-8")
            draw(browser, page, name, size, scheme)
        page.write_text(terminal(), encoding="utf-8")
        draw(browser, page, "terminal", (820, 100), "dark", full=True)
        browser.close()


def draw(
    browser: Any, page: Path, name: str, size: tuple[int, int], scheme: str, *, full: bool = False
) -> None:
    viewport = {"width": size[0], "height": size[1]}
    opened = browser.new_page(viewport=viewport, color_scheme=scheme)
    opened.set_default_timeout(300_000)  # of a machine with other work
    opened.goto(page.as_uri())
    clip = None
    if not full:
        opened.wait_for_selector("html[data-ready]")
        clip = {"x": 0, "y": 0, "width": size[0], "height": whole_charts(opened, size[1])}
    path = PICTURES / f"{name}.png"
    opened.screenshot(path=str(path), full_page=True, clip=clip)
    opened.close()
    Image.open(path).convert("RGB").quantize(COLORS).save(path, optimize=True)
    print(f"{path.relative_to(ROOT)}: {path.stat().st_size / 1000:.0f} kB")


def whole_charts(opened: Any, height: int) -> float:
    """Return where the last chart ends that a picture of this height, or a little more, shows."""
    boxes = [chart.bounding_box() for chart in opened.locator(".chart").all()]
    ends = [box["y"] + box["height"] for box in boxes]
    return min((end for end in ends if end >= height), default=float(height)) + 8.0


def terminal() -> str:
    """Return what a terminal of 80 columns shows, as a page."""
    shown = ""
    for arguments in (["--last", "8"], ["--step", "47"]):
        command = [sys.executable, "-m", "rlbatch", "inspect", str(EXAMPLE), *arguments]
        typed = ["rlbatch", "inspect", "docs/example-log", *arguments]
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "COLUMNS": "80", "PYTHONPATH": str(ROOT)},
        )
        shown += f"$ {' '.join(typed)}\n{done.stdout}\n"
    text = re.sub(r"(?m)^(\$ .*)$", r"<b>\1</b>", html.escape(shown.rstrip()))
    style = "margin:0;padding:16px;background:#0f1318;color:#e6edf3;font:14px/1.35 monospace"
    return f'<meta charset="utf-8"><body style="margin:0"><pre style="{style}">{text}</pre>'


if __name__ == "__main__":
    main()
