"""The page in a real browser: Debian's Chromium, headless and without a network."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rlbatch.inspect.reading import RunLog, read_logs
from rlbatch.inspect.report import thinning
from rlbatch.inspect.report.page import build_page
from rlbatch.inspect.series import points
from tests.rlbatch.inspect.made import CURVE, EXAMPLE, LOGS, make_log, make_record

pytestmark = pytest.mark.slow

CHROMIUM = Path(os.environ.get("CHROMIUM", "/usr/bin/chromium"))
FLAGS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
)
WIDTHS = {"phone": (390, 844), "tablet": (820, 1100), "desktop": (1400, 900)}
EVIL = "</script><script>window.evil=1</script><img src=x onerror=window.evil=1>"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if not CHROMIUM.exists():
        message = f"{CHROMIUM} is missing: apt-get install chromium, or set CHROMIUM."
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as api:
        opened = api.chromium.launch(executable_path=str(CHROMIUM), args=FLAGS)
        yield opened
        opened.close()


Open = Callable[..., Any]


@pytest.fixture
def show(browser: Any, tmp_path: Path) -> Iterator[Open]:
    """Open a page of logs; whatever it complains about fails the test."""
    complaints: list[str] = []
    contexts: list[Any] = []

    def opened(logs: list[RunLog], size: str = "desktop", **settings: Any) -> Any:
        path = tmp_path / "report.html"
        path.write_text(build_page(logs), encoding="utf-8")
        width, height = WIDTHS[size]
        viewport = {"width": width, "height": height}
        context = browser.new_context(viewport=viewport, offline=True, **settings)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: request.url.startswith("file:") or
                complaints.append(request.url))  # fmt: skip
        page.goto(path.as_uri())
        page.wait_for_selector("html[data-ready]")
        return page

    yield opened
    for context in contexts:
        context.close()
    assert complaints == []


def two_runs() -> list[RunLog]:
    return read_logs([EXAMPLE, LOGS / "live"])


def many(count: int) -> RunLog:
    """Make a long log whose size changes now and then."""
    records, size = [], 32
    for index in range(count):
        after = size * 2 if index % 40 == 20 else size // 2 if index % 40 == 39 else size
        signals = {"train_loss": 1 + 1 / (index + 1), "step_cost_curve": CURVE}
        signals |= {"grad_sqr": 1.0, "grad_sqr_se": 0.1, "noise_trace": 64.0, "noise_trace_se": 1.0}
        records.append(
            make_record(
                index, batch_size_before=size, batch_size=after, signals=signals, reasons=["rule"]
            )
        )
        size = after
    return make_log(*records, name="many")


def plot(page: Any, chart: str) -> Any:
    return page.locator(f"[data-chart={chart}] .u-over")


def shown_range(page: Any) -> tuple[str, ...]:
    """Return the labels of each chart's readout, which follow the cursor."""
    return tuple(page.locator(".chart header .num").all_text_contents())


@pytest.mark.parametrize("size", WIDTHS)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_opens_at_every_width_and_in_the_dark(show: Open, size: str, scheme: str) -> None:
    page = show(two_runs(), size, color_scheme=scheme)

    assert page.evaluate("document.documentElement.dataset.theme") == scheme
    wide = page.evaluate("document.documentElement.scrollWidth")
    assert wide <= WIDTHS[size][0]  # nothing sticks out
    boxes = [chart.bounding_box() for chart in page.locator(".chart canvas").all()]
    assert len(boxes) == 7
    assert all(box["width"] > 200 and box["x"] + box["width"] <= WIDTHS[size][0] for box in boxes)
    for left, right in itertools.pairwise(boxes):  # none lies over another
        assert left["x"] + left["width"] <= right["x"] or left["y"] + left["height"] <= right["y"]
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(255, 255, 255)") == (scheme == "light")


def test_the_cursor_is_linked_and_reads_the_log(show: Open) -> None:
    log = read_logs([EXAMPLE])[0]
    page = show([log])
    box = plot(page, "loss").bounding_box()
    x = box["width"] * 0.5
    page.mouse.move(box["x"] + x, box["y"] + 40)
    page.wait_for_timeout(100)

    lines = page.locator(".u-cursor-x").evaluate_all(
        "found => found.map(line => new DOMMatrix(getComputedStyle(line).transform).m41)"
    )
    assert max(lines) - min(lines) <= 2  # at one place in every chart
    step = 0.5 * log.records[-1].step
    record = [r for r in log.records if r.step <= step][-1]
    read = page.locator("[data-chart=size] header .num").text_content()
    assert read == str(record.batch_size)
    assert record.reasons[0] in page.locator("#hint").text_content()


def test_dragging_zooms_every_chart_and_a_double_click_shows_all(show: Open) -> None:
    page = show([many(1000)])
    box = plot(page, "loss").bounding_box()

    def pixels() -> list[Any]:
        return [
            chart.evaluate("canvas => canvas.toDataURL()")
            for chart in page.locator(".chart canvas").all()
        ]

    before = pixels()
    page.mouse.move(box["x"] + 100, box["y"] + 50)
    page.mouse.down()
    page.mouse.move(box["x"] + 200, box["y"] + 50, steps=5)
    page.mouse.up()
    page.wait_for_timeout(200)
    zoomed = pixels()
    assert all(left != right for left, right in zip(before, zoomed, strict=True))

    page.mouse.dblclick(box["x"] + 150, box["y"] + 50)
    page.wait_for_timeout(200)
    assert pixels()[1:3] == before[1:3]


@pytest.mark.parametrize("axis", ["samples", "cost"])
def test_the_axis_can_be_switched(show: Open, axis: str) -> None:
    log = read_logs([EXAMPLE])[0]
    page = show([log])
    page.click(f"#axis button[value={axis}]")

    assert page.locator("#axis button[aria-pressed=true]").text_content() == axis
    assert page.locator("[data-chart=cost]").count() == (axis != "cost")
    box = plot(page, "size").bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.5, box["y"] + 40)
    page.wait_for_timeout(100)
    values = [float(getattr(r, {"samples": "samples_seen"}.get(axis, axis))) for r in log.records]
    place = [i for i, value in enumerate(values) if value <= values[-1] / 2][-1]
    read = page.locator("[data-chart=size] header .num").text_content()
    assert read == str(log.records[place].batch_size)


def test_a_click_shows_why(show: Open) -> None:
    log = read_logs([EXAMPLE])[0]
    page = show([log])
    place = 13  # the goodput floor raised it
    record = log.records[place]
    share = record.step / log.records[-1].step
    box = plot(page, "size").bounding_box()
    page.mouse.click(box["x"] + share * box["width"], box["y"] + 30)

    why = page.locator("#why").text_content()
    assert f"decision {place + 1} of {len(log.records)}" in why
    assert "raised from 256 to 512" in why
    assert "; ".join(record.reasons) in why
    assert "What pushed it" in why
    assert page.locator("#why canvas").count() == 1
    assert page.locator("tr[aria-selected=true] td").first.text_content() == str(record.step)
    assert "raised" in page.locator("#live").text_content()  # told to screen readers


def test_it_can_be_used_by_keyboard(show: Open) -> None:
    log = read_logs([EXAMPLE])[0]
    page = show([log])
    page.focus("#charts")

    def selected() -> str:
        return page.locator("#why h3").first.text_content().split(" of ")[0]

    assert selected() == "decision 1"  # the first change
    page.keyboard.press("ArrowRight")
    assert selected() == "decision 2"
    page.keyboard.press("End")
    assert selected() == f"decision {len(log.records)}"
    page.keyboard.press("Home")
    page.keyboard.press("Shift+ArrowRight")
    page.keyboard.press("Shift+ArrowRight")
    page.keyboard.press("Shift+ArrowRight")
    assert selected() == "decision 10"  # the change after the first three
    page.keyboard.press("x")
    assert page.locator("#axis button[aria-pressed=true]").text_content() == "samples"
    before = page.locator("[data-chart=size] canvas").evaluate("canvas => canvas.toDataURL()")
    page.keyboard.press("+")
    page.wait_for_timeout(100)
    zoomed = page.locator("[data-chart=size] canvas").evaluate("canvas => canvas.toDataURL()")
    assert zoomed != before


def test_runs_can_be_hidden_and_the_table_holds_all(show: Open) -> None:
    page = show(two_runs())
    buttons = page.locator("#runs-set button")
    assert buttons.all_text_contents() == ["example-log", "live"]
    assert "live" in page.locator("[data-chart=loss] .num").text_content()

    buttons.nth(1).click()
    assert buttons.nth(1).get_attribute("aria-pressed") == "false"
    assert "live" not in page.locator("[data-chart=loss] .num").text_content()

    page.select_option("#filter", "all")
    rows = page.locator("#rows tbody tr")
    assert rows.count() == len(read_logs([EXAMPLE])[0].records)


def test_touch_and_zoom_buttons_do_on_a_phone(show: Open) -> None:
    page = show(two_runs(), "phone", has_touch=True, is_mobile=True)
    before = page.locator("[data-chart=size] canvas").evaluate("canvas => canvas.toDataURL()")
    page.tap("#zoom button[value=in]")
    page.wait_for_timeout(100)
    assert page.locator("[data-chart=size] canvas").evaluate("c => c.toDataURL()") != before
    words = page.locator("#why").text_content()
    chart = plot(page, "size")
    chart.tap(position={"x": chart.bounding_box()["width"] * 0.8, "y": 100})
    assert page.locator("#why").text_content() != words


def test_markup_in_a_log_does_nothing(show: Open) -> None:
    record = make_record(0, batch_size=128, reasons=[EVIL], signals={EVIL: 1.0, "train_loss": 1.0})
    log = replace(make_log(record, make_record(1), name=EVIL), problems=(EVIL,))
    named = replace(log, run={**log.run, "task": EVIL, "policy": EVIL, "model": EVIL})
    page = show([named, log])
    page.select_option("#filter", "all")
    page.locator("#rows tbody tr").first.click()

    assert page.evaluate("window.evil") is None
    assert EVIL in page.locator("#why").text_content()
    assert EVIL[:60] in page.locator("h1").text_content()
    assert page.locator("img").count() == 0


def test_it_prints_on_few_pages(show: Open, tmp_path: Path) -> None:
    page = show(two_runs(), color_scheme="dark")
    page.pdf(path=str(tmp_path / "page.pdf"), format="A4")

    content = (tmp_path / "page.pdf").read_bytes()
    assert content.startswith(b"%PDF")
    assert 1 <= content.count(b"/Type /Page\n") <= 5
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"  # again


def test_nothing_is_cut_off_on_paper(show: Open) -> None:
    page = show(two_runs(), "tablet")
    assert page.locator("#rows tbody tr").count() > 1
    page.emulate_media(media="print")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    page.set_viewport_size({"width": 718, "height": 1000})  # A4 without its margins, in CSS pixels

    for _ in range(100):  # charts follow the width a moment later
        if page.evaluate("document.documentElement.scrollWidth") <= 718:
            break
        page.wait_for_timeout(50)
    assert page.evaluate("document.documentElement.scrollWidth") <= 718
    for table in page.locator("table").all():
        box = table.bounding_box()
        assert box["x"] + box["width"] <= 718
    assert page.locator("#runs-set").is_visible()  # the legend
    assert not page.locator("#zoom").is_visible()


@pytest.mark.parametrize("count", [0, 1, 2])
def test_very_short_runs_open(show: Open, count: int) -> None:
    page = show([many(count)])

    assert page.locator("h1").text_content() == "many"


def test_ten_thousand_decisions_can_be_hovered_and_zoomed(show: Open) -> None:
    page = show([many(10_000)])
    box = plot(page, "loss").bounding_box()
    page.evaluate("""() => {
        window.frames_ = 0;
        const tick = () => { window.frames_ += 1; requestAnimationFrame(tick); };
        requestAnimationFrame(tick);
    }""")
    for place in range(30):
        page.mouse.move(box["x"] + 10 + 9 * place, box["y"] + 60)

    assert page.evaluate("window.frames_") >= 30  # a frame for each move at least
    page.click("#zoom button[value=in]")
    page.select_option("#filter", "all")
    assert page.locator("#pages").text_content() == "10,000 of 10,000 lines, page 1 of 200"


def test_a_thinned_run_says_so_and_keeps_its_numbers(
    show: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(thinning, "MOST_LINES", 100)
    log = many(1_000)
    page, shown = show([log]), len(thinning.shown_places(points(log)))

    assert "1,000 lines, too many for a page: " in page.locator(".notes").text_content()
    page.locator("#charts").press("End")
    assert page.locator("#why h3").first.text_content() == "decision 1000 of 1000"
    page.select_option("#filter", "all")
    assert page.locator("#pages").text_content() == f"{shown} of 1,000 lines, page 1 of 2"
