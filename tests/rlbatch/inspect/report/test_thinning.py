"""Long logs are thinned for the page."""

from __future__ import annotations

import itertools
import json
import re

import pytest

from rlbatch.inspect.report import thinning
from rlbatch.inspect.report.data import run_data
from rlbatch.inspect.report.page import build_page
from rlbatch.inspect.series import points
from tests.rlbatch.inspect.made import make_log, make_record


def long_log(count: int, every: int):
    """Return a log whose size changes with each `every`-th decision."""
    records, size = [], 32
    for index in range(count):
        after = (64 if size == 32 else 32) if index % every == every - 1 else size
        records.append(make_record(index, batch_size_before=size, batch_size=after))
        size = after
    return make_log(*records)


def test_a_log_that_fits_is_shown_whole() -> None:
    log = long_log(40, 7)
    assert thinning.shown_places(points(log), 40) == list(range(40))
    assert thinning.thinned(points(log), range(40)) == ""
    assert run_data(log)["places"] is None


def test_ends_and_all_changes_are_kept_and_the_rest_is_evenly_spread() -> None:
    found = points(long_log(1000, 97))
    places = thinning.shown_places(found, 110)

    assert places == sorted(set(places))
    assert len(places) <= 110
    assert {0, 999, *range(96, 1000, 97)} <= set(places)
    gaps = [after - before for before, after in itertools.pairwise(places)]
    assert max(gaps) <= 11  # 1000 lines, of which 98 are chosen evenly


def test_changes_themselves_are_thinned_where_they_are_too_many() -> None:
    found = points(long_log(1000, 2))
    places = thinning.shown_places(found, 100)

    assert len(places) <= 100
    changed = sum(found[place].changed for place in places)
    assert 50 <= changed < 100
    said = thinning.thinned(found, places)
    assert f"1,000 lines, too many for a page: {len(places)} of them" in said
    assert f"with {changed} of the 500 changes and events" in said


def test_the_page_says_what_it_leaves_out(monkeypatch: pytest.MonkeyPatch) -> None:
    log = long_log(400, 97)
    whole = run_data(log)
    monkeypatch.setattr(thinning, "MOST_LINES", 50)
    page = build_page([log])

    (text,) = re.findall(r'<script type="application/json" id="runs">(.*?)</script>', page)
    (run,) = json.loads(text)
    places = run["places"]
    assert len(places) == len(run["step"]) <= 50
    assert run["lines"] == 400
    for name in ("step", "samples", "cost", "before", "size", "noise", "train"):
        assert run[name] == [whole[name][place] for place in places]
    # A change is explained by all lines before it, shown or not.
    at = {place: str(number) for number, place in enumerate(places)}
    assert run["words"] == {at[int(place)]: told for place, told in whole["words"].items()}
    assert f"<p>run: {run['thinned']}</p>" in page
    assert "with all 4 changes and events" in run["thinned"]
    assert "400, 4 changed the batch size" in page  # the summary is of all lines
