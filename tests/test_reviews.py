"""reviews.csv: rows are added, cut short, taken back and merged; what they say of pairs, and where they contradict."""

from __future__ import annotations

import multiprocessing
import tempfile
from itertools import combinations
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from whaleid.data.reviews import (
    ANSWERS,
    TAKEN_BACK,
    Links,
    Review,
    append_review,
    find_contradiction,
    links_of,
    merge_reviews,
    now,
    read_reviews,
    repair_reviews,
    standing,
)
from whaleid.utils.errors import WhaleidError

NAMES = ("a", 'b "1",2.jpg', "ü/c.jpg", "d", "e")
PEOPLE = ("nora", "ö, t", "x")


def review(image: str, other: str, same: str, number: int = 0, who: str = "nora") -> Review:
    return Review(image, other, same, f"2026-05-04T12:{number // 60:02d}:{number % 60:02d}+00:00", who)


@st.composite
def decisions(draw: st.DrawFn, answers: tuple[str, ...] = (*ANSWERS, TAKEN_BACK), most: int = 8) -> list[Review]:
    pairs = st.lists(st.sampled_from(NAMES), min_size=2, max_size=2, unique=True)
    rows = draw(st.lists(st.tuples(pairs, st.sampled_from(answers), st.sampled_from(PEOPLE)), max_size=most))
    return [review(a, b, same, number, who) for number, ((a, b), same, who) in enumerate(rows)]


def written(rows: list[Review], path: Path) -> Path:
    for row in rows:
        append_review(path, row)
    return path


@settings(max_examples=20, deadline=None)
@given(decisions(), st.data())
def test_a_file_cut_short_anywhere_loses_only_the_row_that_was_not_kept(
    rows: list[Review], data: st.DataObject
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = written(rows, Path(folder, "reviews.csv"))
        assert read_reviews(path) == rows
        if not rows:
            return
        content = path.read_bytes()
        last = len(content) - content[:-1].rfind(b"\n") - 1
        cut = data.draw(st.integers(1, last))
        path.write_bytes(content[:-cut])
        kept = rows if cut == 1 else rows[:-1]  # without its line's end alone, the row is whole
        assert read_reviews(path) == kept
        torn = repair_reviews(path)
        assert bool(torn) == (1 < cut < last) and read_reviews(path) == kept
        append_review(path, rows[0])
        assert read_reviews(path) == [*kept, rows[0]]


@given(decisions())
def test_the_last_row_of_a_person_on_a_pair_counts(rows: list[Review]) -> None:
    expected = []
    for place, row in enumerate(rows):
        later = [one for one in rows[place + 1 :] if one.pair == row.pair and one.who == row.who]
        if not later and row.same != TAKEN_BACK:
            expected.append(row)
    assert standing(rows) == expected
    assert set(links_of(rows).must) == {row.pair for row in expected if row.same == "yes"}
    assert set(links_of(rows).cannot) == {row.pair for row in expected if row.same == "no"}


@given(decisions(("yes", "no", "yes"), 7))
def test_a_contradiction_is_a_chain_of_the_same_with_different_ends(rows: list[Review]) -> None:
    """Against the transitive closure, by repeated passes over all triples."""
    links = links_of(rows)
    same = {(a, b) for pair in links.must for a, b in (pair, pair[::-1])}
    for _ in NAMES:
        same |= {(a, d) for a, b in same for c, d in same if b == c}
    chain = find_contradiction(rows)
    assert bool(chain) == any(pair in same for pair in links.cannot)
    if chain:
        *tied, different = chain
        assert different.same == "no" and {one.same for one in tied} == {"yes"} and set(chain) <= set(rows)
        place = {different.pair[0]}
        for one in tied:
            assert place & set(one.pair)
            place = set(one.pair) - place
        assert place == {different.pair[1]}


@settings(max_examples=20, deadline=None)
@given(decisions(("yes", "unsure", TAKEN_BACK)), decisions(("yes", "unsure", TAKEN_BACK)))
def test_files_are_merged_in_the_order_of_their_times(ours: list[Review], theirs: list[Review]) -> None:
    theirs = [Review(row.image, row.other, row.same, row.when, f"{row.who} 2") for row in theirs]
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder, name) for name in ("a.csv", "b.csv")]
        for rows, path in zip((ours, theirs), paths, strict=True):
            repair_reviews(path)
            written(rows, path)
        both, again = Path(folder, "both.csv"), Path(folder, "again.csv")
        assert merge_reviews(paths, both) == len(ours) + len(theirs) == len(read_reviews(both))
        assert set(standing(read_reviews(both))) == {*standing(ours), *standing(theirs)}
        merge_reviews(paths[::-1], again)
        assert links_of(read_reviews(again)) == links_of(read_reviews(both))
        assert merge_reviews([both, *paths], both) == len(ours) + len(theirs)  # what is known is not added twice
        with pytest.raises(WhaleidError, match="is there already"):
            merge_reviews(paths, both)


def test_people_who_disagree_are_not_merged(tmp_path: Path) -> None:
    ours = written([review("a", "b", "yes"), review("c", "b", "yes")], tmp_path / "a.csv")
    theirs = written([review("c", "a", "no", who="tom")], tmp_path / "b.csv")
    with pytest.raises(WhaleidError) as caught:
        merge_reviews([ours, theirs], tmp_path / "both.csv")
    line = str(caught.value)
    assert "a = b (nora), c = b (nora), but c != a (tom)" in line and "\n" not in line
    assert not (tmp_path / "both.csv").exists()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("image,other,same\n", "row 1 is 'image,other,same'"),
        ("something else", "row 1 is"),
        ("image,other,same,when,who\na,b,maybe,2026-05-04T12:00:00Z,x\n", "row 2: same is 'maybe'"),
        ("image,other,same,when,who\n\na,a,yes,2026-05-04T12:00:00Z,x\n", "row 3: 'a' and 'a' are not two images"),
        ("image,other,same,when,who\na,b,yes,yesterday,x\n", "row 2: "),
        ("image,other,same,when,who\na,b,yes,2026-05-04T12:00:00,x\n", "row 2: when is .* without a time zone"),
        ("image,other,same,when,who\na,b,yes,2026-05-04T12:00:00Z\nc,", "row 2: 4 cells in place of 5"),
    ],
)
def test_a_wrong_file_is_one_line_and_stays_as_it_is(tmp_path: Path, content: str, said: str) -> None:
    path = tmp_path / "reviews.csv"
    path.write_text(content)
    with pytest.raises(WhaleidError, match=said) as caught:
        read_reviews(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value) and path.read_text() == content


def test_a_row_that_could_not_be_read_again_is_refused(tmp_path: Path) -> None:
    path = written([review("a", "b", "yes")], tmp_path / "reviews.csv")
    for wrong in (review("a", "a", "yes"), review("a\n", "b", "yes"), review("a", "b", "no", who='x "y"')):
        with pytest.raises(WhaleidError, match="was not kept"):
            append_review(path, wrong)
    assert len(read_reviews(path)) == 1 and read_reviews(tmp_path / "none.csv") == []


def test_links_without_some_images() -> None:
    links = links_of([review(*pair, "yes" if "a" in pair else "no") for pair in combinations("abc", 2)])
    assert links == Links((("a", "b"), ("a", "c")), (("b", "c"),)) and len(links) == 3
    assert links.without({"b"}) == Links((("a", "c"),), ())


def _append_many(path: Path, who: str) -> None:
    for number in range(25):
        append_review(path, Review("a", f"b{number}", "yes", now(), who))


def test_processes_that_write_at_once_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "reviews.csv"
    context = multiprocessing.get_context("fork")
    jobs = [context.Process(target=_append_many, args=(path, who)) for who in ("one", "two", "three")]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join()
    rows = read_reviews(path)
    assert len(rows) == len(set(rows)) == 75
