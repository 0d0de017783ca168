"""`make trust`: the soak's short form (three runs of the pipeline leave nothing behind), and the tables in the page."""

from __future__ import annotations

import pytest
from trust import report
from trust.soak import SLACK, Use, growth, in_one_process, soak_rows
from trust.world import make_world


def test_the_pipeline_again_and_again_holds_no_more(tmp_path):
    world = make_world(tmp_path / "world")
    uses = in_one_process(world, tmp_path, 3)
    assert len(uses) == 3 and growth(uses) == [], uses
    assert {one.temporary for one in uses} == {0.0}


@pytest.mark.parametrize(
    ("last", "found"),
    [
        (Use(300 + SLACK["memory"], 9, 4, 0.0), []),
        (Use(301 + SLACK["memory"], 9, 5, 0.0), ["memory grows from 300 to 341"]),
        (
            Use(200, 10, 6, 0.5),
            ["files grows from 9 to 10", "threads grows from 4 to 6", "temporary grows from 0 to 0.5"],
        ),
    ],
)
def test_growth_is_against_the_first_warm_run(last, found):
    uses = [Use(100, 5, 1, 0.0), Use(300, 9, 4, 0.0), Use(900, 99, 9, 0.0), last]
    assert growth(uses) == found
    assert len(soak_rows("one process", uses)) == 3 and soak_rows("x", uses)[-1].startswith("| x | 4 | ")


def test_each_part_has_its_place_in_the_page_and_leaves_the_others(tmp_path, monkeypatch):
    before = report.PAGE.read_text()
    for part in report.PARTS:
        assert before.count(f"<!-- begin {part}: ") == before.count(f"<!-- end {part} -->") == 1
    page = tmp_path / "trust.md"
    page.write_text(before)
    monkeypatch.setattr(report, "PAGE", page)
    report.write_table("soak", ["| a | b |"])
    report.write_table("soak", ["| c | d |"])
    start, end = before.index("<!-- begin soak"), before.index("<!-- end soak -->")
    after = page.read_text()
    assert after.startswith(before[:start]) and after.endswith(before[end:])
    assert after[start : after.index("<!-- end soak -->")].splitlines()[1:] == ["", "| c | d |", ""]
