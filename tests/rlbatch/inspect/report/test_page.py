"""The page as text: nothing comes from elsewhere, nothing from a log becomes markup."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from rlbatch.inspect.reading import read_log, read_logs
from rlbatch.inspect.report.page import build_page
from tests.rlbatch.inspect.made import CURVE, EXAMPLE, LOGS, make_log, make_record

EVIL = '</script><script>window.evil=1</script><img src=x onerror="window.evil=1">\x1b[2J\u202e'
LICENCE = "Copyright (c) 2022 Leon Sorokin"


class Reader(HTMLParser):
    """Collects elements and their attributes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.within = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        self.within = tag == "script"
        if self.within:
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        self.within = False

    def handle_data(self, data: str) -> None:
        if self.within:
            self.scripts[-1] += data


@pytest.fixture(scope="module")
def page() -> str:
    return build_page(read_logs([EXAMPLE, LOGS / "live"]))


def test_nothing_is_loaded_from_anywhere(page: str) -> None:
    reader = Reader(page)

    for _, attributes in reader.found:
        assert not {"src", "href", "action", "srcset"} & attributes.keys()
    assert "url(" not in page
    assert "@import" not in page


def test_only_the_pages_own_scripts_may_run(page: str) -> None:
    reader = Reader(page)
    (policy,) = [a["content"] for _, a in reader.found if "http-equiv" in a]
    allowed = re.findall(r"'sha256-([^']+)'", policy or "")

    def digest(text: str) -> str:
        return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()

    runs = [script for script in reader.scripts if not script.startswith("[{")]
    assert [digest(script) for script in runs] == allowed
    assert policy is not None
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert not [name for _, a in reader.found for name in a if name.startswith("on")]


def test_the_licence_of_what_draws_is_in_it(page: str) -> None:
    assert LICENCE in page


def test_markup_in_any_text_stays_text() -> None:
    records = [
        make_record(
            0, batch_size=128, reasons=[EVIL], signals={EVIL: 1.0, "step_cost_curve": CURVE}
        ),
        make_record(1, event="end", reasons=[EVIL]),
    ]
    texts = {name: EVIL for name in ("task", "policy", "seed", "model", "created", "lr_coupling")}
    log = make_log(*records, name=EVIL, **texts)

    page = build_page([log, log], title=EVIL)

    tags = [tag for tag, _ in Reader(page).found]
    assert tags.count("script") == 6  # the data and five of the page's own
    assert "img" not in tags
    assert not {"\x1b", "\u202e"} & set(page)
    assert "window.evil=1</script>" not in page


def test_what_is_missing_of_a_log_is_told(tmp_path: Path) -> None:
    folder = tmp_path / "log"
    folder.mkdir()
    (folder / "run.json").write_bytes((EXAMPLE / "run.json").read_bytes())
    (folder / "decisions.jsonl").write_bytes((EXAMPLE / "decisions.jsonl").read_bytes()[:-9])

    assert "The last line is incomplete" in build_page([read_log(folder)])


def test_a_page_of_a_thousand_decisions_is_small() -> None:
    log = read_log(EXAMPLE)
    lines = [log.records[i % len(log.records)] for i in range(1000)]
    signals = [
        {**dict(r.signals), "train_loss": 1 / (i + 1), "val_loss": 1.23456789 / (i + 1)}
        for i, r in enumerate(lines)
    ]
    records = tuple(
        make_record(
            i,
            step=7 * i,
            samples_seen=1001 * i,
            cost=0.123456789 * i,
            batch_size=r.batch_size,
            batch_size_before=r.batch_size_before,
            observation=r.observation,
            probabilities=r.probabilities,
            requested_log2_change=r.requested_log2_change,
            signals=signals[i],
            reasons=[f"learned: stay (p={i / 1000})"],
        )
        for i, r in enumerate(lines)
    )

    page = build_page([make_log(*records, **dict(log.run))])

    assert len(page.encode()) < 400_000


def test_a_page_without_runs_has_no_charts() -> None:
    page = build_page([], title="nothing")

    assert 'id="charts"' not in page
    assert json.loads(re.findall(r'id="runs">(.*?)</script>', page)[0]) == []
