"""The report's page in a browser, opened from disk: figures, filters, keys, and that it asks for nothing else."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from browser import WHERE, Browser, browser
from test_report import UNKNOWN, shared_project
from test_report_data import evaluated

from whaleid.report.inputs import Results, read_results
from whaleid.report.page import write_report

pytestmark = pytest.mark.skipif(WHERE is None, reason="Debian's chromium-driver is not installed")
ACTIVE = "return [...document.getElementById('cards').children].indexOf(document.activeElement)"


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    return read_results(shared_project(tmp_path_factory))


@pytest.fixture(scope="module")
def page(results: Results) -> Path:
    return write_report(results.project)


@pytest.fixture(scope="module")
def window() -> Iterator[Browser]:
    with browser() as opened:
        yield opened


def text(window: Browser, place: str) -> str:
    return window.run(f"return document.getElementById('{place}').textContent")


def choose(window: Browser, place: str, value: object) -> None:
    window.run(
        f"const one = document.getElementById('{place}'); one.value = {value!r}; "
        "one.dispatchEvent(new Event('input', {bubbles: true}))"
    )


def test_the_slider_gives_the_evaluators_score(window: Browser, page: Path, results: Results) -> None:
    window.open(page)
    assert text(window, "value-map") == f"{results.rankers[-1]['map']:.5f}"
    called = results.rankers[-1]["unknown"]["oof_first"]
    assert text(window, "value-new") == f"{100 * called:.1f} %"
    seen = set()
    for wanted in np.nanquantile(results.scored.best, (0.1, 0.5, 0.9)).tolist():
        choose(window, "threshold", wanted)
        tried = float(window.run("return document.getElementById('threshold').value"))
        assert text(window, "value-map") == f"{evaluated(results, tried).map:.5f}"
        assert text(window, "threshold-value") == f"{tried:.4f}"
        seen.add(text(window, "value-map"))
    assert len(seen) == 3
    window.run("document.getElementById('fitted').click()")
    assert text(window, "value-map") == f"{results.rankers[-1]['map']:.5f}"


def test_filters_and_search_choose_cards(window: Browser, page: Path, results: Results) -> None:
    window.open(page)
    final = results.final
    first, known = final.guesses[:, 0], final.known
    expected = {
        "all": len(first),
        "right": int((first == final.truth).sum()),
        "wrong": int((first != final.truth).sum()),
        "called": int((first == UNKNOWN).sum()),
        "missed": int(((first == UNKNOWN) & known).sum()),
        "new": int((~known).sum()),
    }
    for state, count in expected.items():
        choose(window, "state", state)
        assert text(window, "count").endswith(f"of {count} queries") if count else "No query" in text(window, "count")
    choose(window, "state", "all")
    choose(window, "search", "w&3")
    assert text(window, "count").endswith(f"of {int((known & (final.truth == 'w&3')).sum())} queries")
    choose(window, "search", "07&")
    cards = window.run("return [...document.querySelectorAll('#cards figcaption b')].map((one) => one.textContent)")
    assert cards[0] == results.images["identity"].iloc[7] and "1 to 1 of 1 queries" in text(window, "count")


def test_cards_of_a_camera_and_their_share_of_right_guesses(window: Browser, page: Path, results: Results) -> None:
    window.open(page)
    final = results.final
    camera = results.images["camera"].iloc[final.rows].to_numpy() == "north"
    window.run(
        "const one = document.querySelector('[data-column=camera]'); one.value = '0'; "
        "one.dispatchEvent(new Event('input', {bubbles: true}))"
    )
    assert text(window, "count").endswith(f"of {int(camera.sum())} queries")
    share = (final.guesses[camera, 0] == final.truth[camera]).mean()
    assert text(window, "share") == f"first guess right for {100 * share:.1f} %"
    window.run("document.querySelector('#identities button.link').click()")
    assert window.run("return document.querySelector('[data-column=camera]').value") == "all"


def test_keys_walk_the_cards_and_over_the_end_of_a_page(window: Browser, page: Path) -> None:
    window.open(page)
    window.run("document.getElementById('after').focus()")
    window.press("Tab")
    assert window.run(ACTIVE) == 0
    for key, at in (("ArrowRight", 1), ("ArrowDown", 2), ("ArrowLeft", 1)):
        window.press(key)
        assert window.run(ACTIVE) == at
    window.run("document.getElementById('cards').lastChild.focus()")
    window.press("ArrowRight")
    assert window.run(ACTIVE) == 0 and text(window, "count") == "25 to 28 of 28 queries"
    window.press("ArrowLeft")
    assert window.run(ACTIVE) == 23


def test_a_name_in_a_table_shows_its_wrong_queries(window: Browser, page: Path) -> None:
    window.open(page)
    window.run("document.querySelector('#identities button.link').click()")
    wrong = window.run("return document.querySelectorAll('#identities tbody tr')[0].children[2].textContent")
    assert text(window, "count") == f"1 to {wrong} of {wrong} queries" and window.run(ACTIVE) == 0


def test_a_card_says_how_its_guesses_are_explained(window: Browser, page: Path, results: Results) -> None:
    window.open(page)
    choose(window, "state", "wrong")
    window.run("document.querySelector('.why summary').click()")
    shown = window.run("return document.querySelector('.why pre').textContent")
    row_of = {name: row for row, name in enumerate(results.images["image"])}
    identity, final = results.images["identity"], results.final
    _, what, query, *others, flag, competition, recipe_flag, recipe = shlex.split(shown)
    assert (what, flag, competition, recipe_flag, recipe) == ("explain", "-c", "tiny.yaml", "-r", "own.yaml")
    explained = [identity[row_of[other]] for other in others]
    (at,) = np.flatnonzero((final.rows == row_of[query]) & ~final.simulated)
    named = [name for name in final.guesses[at] if (identity == name).any()]  # what has a photograph
    right = [final.truth[at]] if final.truth[at] in named else []
    assert explained == list(dict.fromkeys([named[0], *right]))


def test_the_map_is_coloured_by_what_one_chooses(window: Browser, page: Path) -> None:
    window.open(page)
    picture = "return document.getElementById('map-points').toDataURL()"
    seen = [window.run(picture)]
    for colour in ("identity", "fold", "-camera"):
        choose(window, "map-colour", colour)
        seen.append(window.run(picture))
    assert len(set(seen)) == 4
    choose(window, "map-colour", "verdict")
    assert window.run(picture) == seen[0] and not window.console()


def test_a_point_of_the_map_leads_to_its_card(window: Browser, page: Path, results: Results) -> None:
    window.open(page)
    clicked = window.run(
        "const canvas = document.getElementById('map-points'), data = JSON.parse(document.getElementById('data')"
        ".textContent).map; const at = (side, length) => 8 + data.points[side] * (length - 16);"
        "const place = {clientX: canvas.getBoundingClientRect().left + at(0, canvas.clientWidth), bubbles: true,"
        "clientY: canvas.getBoundingClientRect().top + at(1, canvas.clientHeight)};"
        "canvas.dispatchEvent(new PointerEvent('pointermove', place));"
        "canvas.dispatchEvent(new MouseEvent('click', place)); return data.rows[0]"
    )
    name, identity = results.images.loc[clicked, ["image", "identity"]]
    assert text(window, "map-name") == f"{identity} {name}"
    assert window.run("return document.getElementById('search').value") == name
    assert text(window, "count") == "1 to 1 of 1 queries" and window.run(ACTIVE) == 0


@pytest.mark.parametrize(("width", "dark"), [(1200, False), (390, False), (360, True)])
def test_it_fits_any_screen_and_asks_for_nothing_else(window: Browser, page: Path, width: int, dark: bool) -> None:
    window.requests()
    window.console()
    window.open(page, width, 800, dark)
    window.run("document.querySelectorAll('img').forEach((one) => { one.loading = 'eager'; })")
    window.run("document.querySelectorAll('.why').forEach((one) => { one.open = true; })")
    assert window.run("return document.documentElement.scrollWidth") == width
    ladder = "const table = document.querySelector('#ladder .wide'); return table.scrollWidth - table.clientWidth"
    assert window.run(ladder) == 0
    paper = window.run("return getComputedStyle(document.body).backgroundColor")
    assert paper == ("rgb(16, 22, 26)" if dark else "rgb(255, 255, 255)")
    asked = window.requests()
    assert asked and all(address.startswith(page.parent.as_uri()) for address in asked)
    assert window.run("return document.querySelectorAll('figure.chart svg:empty').length") == 0
    assert not window.console()
