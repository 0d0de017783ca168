"""`whaleid review`: which pairs are shown and why; the server keeps every decision, and serves nobody else."""

from __future__ import annotations

import csv
import io
import json
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import browser
import numpy as np
import pytest
import yaml
from PIL import Image
from review_world import add, review_project
from test_report import UNKNOWN

from whaleid.cli import main as cli
from whaleid.data.reviews import read_reviews, standing
from whaleid.features.files import read_features
from whaleid.identify.rank import probabilities_of
from whaleid.pipeline.project import Project
from whaleid.pipeline.submission import read_rungs
from whaleid.review.desk import VIEW, Desk
from whaleid.review.pairs import CONFIDENT, copies, doubtful_labels, find_pairs
from whaleid.review.server import LARGEST, ReviewServer
from whaleid.utils.errors import WhaleidError


@pytest.fixture
def project(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> Project:
    return review_project(tmp_path_factory.getbasetemp(), tmp_path / "reviews.csv")


@pytest.fixture
def desk(project: Project, tmp_path: Path) -> Desk:
    return Desk(*find_pairs(project), tmp_path / "reviews.csv", "nora")


@pytest.fixture
def server(desk: Desk) -> Iterator[ReviewServer]:
    with serving(desk) as running:
        yield running


@contextmanager
def serving(desk: Desk) -> Iterator[ReviewServer]:
    with ReviewServer(desk) as running:
        Thread(target=running.serve_forever, daemon=True).start()
        try:
            yield running
        finally:
            running.shutdown()


def ask(address: str, path: str = "", body: object = None, host: str | None = None) -> tuple[int, bytes]:
    """Status and content of an answer; POST where there is a body."""
    content = None if body is None else json.dumps(body).encode()
    request = Request(address + path, content, {} if host is None else {"Host": host})
    try:
        with urlopen(request, timeout=60) as answer:
            return answer.status, answer.read()
    except HTTPError as error:
        return error.code, error.read()


def state(address: str) -> dict[str, Any]:
    return json.loads(ask(address, "state")[1])


# --------------------------------------------------------------------------------------------------- the pairs


def test_pairs_are_the_most_uncertain_guesses_first(project: Project) -> None:
    """By loops over the test candidates, and the nearest image by all cosines."""
    results, pairs = find_pairs(project)
    lists = read_rungs(project)[-1][1]
    chances = probabilities_of(lists, results.figures, UNKNOWN)
    threshold = results.rankers[-1]["unknown"]["used"]
    names = results.images["image"].tolist()
    expected = {}
    for row, query in enumerate(lists.queries.tolist()):
        guesses = [str(lists.classes[code]) for code in lists.codes[row] if code >= 0]
        worth, named = 1.0, [place for place, guess in enumerate(guesses) if guess != UNKNOWN]
        for place in named[:3]:
            near = min(abs(float(chances[row, place]) - level) for level in (0.5, threshold))
            worth = min(worth, 1 - 2 * min(near, 0.5))
            expected[names.index(query), guesses[place]] = "new" if guesses[0] == UNKNOWN else "guess", worth
    shown = [pair for pair in pairs if pair.kind in ("guess", "new")]
    assert {(pair.query, pair.identity): (pair.kind, pair.worth) for pair in shown} == expected
    assert len(shown) == len(expected) >= 8
    assert [pair.worth for pair in pairs] == sorted([pair.worth for pair in pairs], reverse=True)
    (folder,) = {Path(path) / "fold0" for path in project.recipe.sources.values()}
    vectors = read_features(folder, results.images, None, logits=False).embeddings
    for pair in shown:
        own = np.flatnonzero((results.images["identity"] == pair.identity) & (results.images["split"] == "train"))
        assert pair.other == own[np.argmax(vectors[own] @ vectors[pair.query])] and pair.identity in pair.reason


def test_a_label_is_doubted_where_another_identity_is_confident_out_of_fold(project: Project) -> None:
    results, pairs = find_pairs(project)
    final, label = results.final, results.images["identity"]
    expected = {
        (int(row), str(guess))
        for row, guess, score in zip(final.rows, final.guesses[:, 0], final.scores[:, 0], strict=True)
        if guess not in ("", UNKNOWN, label[row]) and score >= CONFIDENT
    }
    assert {(pair.query, pair.identity) for pair in doubtful_labels(results)} == expected
    wrong = label.copy()
    confident = int(np.nanargmax(np.where(final.guesses[:, 0] == UNKNOWN, np.nan, final.scores[:, 0])))
    row = int(final.rows[confident])
    wrong[row] = "w&7" if label[row] != "w&7" else "w&6"
    mislabelled = replace(results, images=results.images.assign(identity=wrong))
    found = {pair.query: pair for pair in doubtful_labels(mislabelled)}
    if final.scores[confident, 0] >= CONFIDENT:
        assert (
            f"labelled {wrong[row]}; models trained without it say {final.guesses[confident, 0]}" in found[row].reason
        )
    assert {pair.query for pair in pairs if pair.kind == "label"} == {row for row, _ in expected}


def test_copies_with_two_labels_come_first(project: Project) -> None:
    results, _ = find_pairs(project)
    assert list(copies(results)) == []
    images = results.images.copy()
    images.loc[[0, 1, 4, 5], "group"] = "one"
    images.loc[[0, 1, 4], "phash"] = ["00000000000000ff", "00000000000000fe", "00000000000000fd"]
    images.loc[5, "phash"] = "ffffffffffffff00"  # of the same encounter, and no copy
    expected = {
        (row, other) for row, other in ((0, 1), (0, 4), (1, 4)) if images["identity"][row] != images["identity"][other]
    }
    found = list(copies(replace(results, images=images)))
    assert {(pair.query, pair.other) for pair in found} == expected and {pair.worth for pair in found} == {1.0}


def test_one_pair_of_an_image_at_a_time_and_none_after_the_same(desk: Desk, tmp_path: Path) -> None:
    first = next(pair for pair in desk.state()["pairs"] if pair["kind"] in ("guess", "new"))
    later = [n for n, pair in enumerate(desk.pairs) if pair.query == first["rows"][0] and n != first["id"]]
    served = [pair["id"] for pair in desk.state()["pairs"]]
    assert len(later) == 2 and not set(later) & set(served)
    again = desk.decide(first["id"], "no")
    assert min(later) in [pair["id"] for pair in again["pairs"]]
    again = desk.decide(first["id"], "yes")
    assert not set(later) & {pair["id"] for pair in again["pairs"]}
    assert [answer["same"] for answer in next(p for p in again["pairs"] if p["id"] == first["id"])["answers"]] == [
        "yes"
    ]
    assert any("; same: yes (nora)" in line for line in desk.lines())
    assert len(read_reviews(tmp_path / "reviews.csv")) == 2


# -------------------------------------------------------------------------------------------------- the server


def test_only_who_knows_the_address_is_served(server: ReviewServer, tmp_path: Path) -> None:
    good, port = server.address, server.server_port
    status, page = ask(good)
    assert (
        status == 200
        and b"<title>whaleid review</title>" in page
        and b"http://" not in page.replace(b"http://www.w3.org/2000/svg", b"")
    )
    assert ask(good, "state", host=f"localhost:{port}")[0] == 200
    base = f"http://127.0.0.1:{port}/"
    decision = {"number": 0, "same": "yes"}
    for address, path, body, host, expected in (
        (base, "", None, None, 403),
        (base, "state", None, None, 403),
        (base + "x" * 22 + "/", "state", None, None, 403),
        (good[:-2] + "/", "decide", decision, None, 403),
        (good, "state", None, "whales.example", 403),
        (good, "decide", decision, f"whales.example:{port}", 403),
        (good, "nothing", None, None, 404),
        (good, "decide", None, None, 404),  # a GET decides nothing
        (good, "picture/999", None, None, 400),
        (good, "picture/x", None, None, 400),
        (good, "decide", {"number": 0, "same": "perhaps"}, None, 400),
        (good, "decide", {"number": 999, "same": "yes"}, None, 400),
        (good, "decide", {"same": "yes"}, None, 400),
        (good, "decide", {"number": 0, "same": "y" * LARGEST}, None, 400),
    ):
        status, content = ask(address, path, body, host)
        assert status == expected and set(json.loads(content)) == {"error"}, (address, path)
    assert read_reviews(tmp_path / "reviews.csv") == []


def test_a_taken_port_is_one_line(server: ReviewServer, desk: Desk) -> None:
    with pytest.raises(WhaleidError, match="--port"):
        ReviewServer(desk, server.server_port)


def test_decide_and_undo(server: ReviewServer, project: Project, tmp_path: Path) -> None:
    first, second = state(server.address)["pairs"][:2]
    for pair, same in ((first, "yes"), (second, "unsure")):
        status, _ = ask(server.address, "decide", {"number": pair["id"], "same": same})
        assert status == 200
    rows = read_reviews(tmp_path / "reviews.csv")
    assert [(row.image, row.other, row.same, row.who) for row in rows] == [
        (pair["image"], pair["other"], same, "nora") for pair, same in ((first, "yes"), (second, "unsure"))
    ]
    add(project, first["image"], first["other"], "no", who="tom")
    found = state(server.address)
    answers = {pair["id"]: [(one["same"], one["who"]) for one in pair["answers"]] for pair in found["pairs"]}
    assert answers[first["id"]] == [("yes", "nora"), ("no", "tom")] and "contradictory" in found["contradiction"]
    for pair in (second, first):  # only this person's, the last one first
        undone = json.loads(ask(server.address, "undo", {})[1])
        assert undone["at"] == pair["id"]
    assert "at" not in json.loads(ask(server.address, "undo", {})[1])
    assert [(row.same, row.who) for row in standing(read_reviews(tmp_path / "reviews.csv"))] == [("no", "tom")]


def test_pictures_and_matches_belong_together(server: ReviewServer, desk: Desk) -> None:
    pair = state(server.address)["pairs"][0]
    for row in pair["rows"]:
        status, content = ask(server.address, f"picture/{row}")
        assert status == 200 and content[:2] == b"\xff\xd8"
        with Image.open(io.BytesIO(content)) as shown:
            assert shown.width == VIEW[0] or shown.height == VIEW[1]
    lines = np.array(json.loads(ask(server.address, f"matches/{pair['id']}")[1])).reshape(-1, 4)
    assert ((lines > 0) & (lines < 1)).all()
    without = Desk.__new__(Desk)
    without._described = None
    assert without.matches(0) == []


def test_clients_at_once_lose_nothing(server: ReviewServer, tmp_path: Path) -> None:
    numbers = [pair["id"] for pair in state(server.address)["pairs"]]

    def decide_all(same: str) -> None:
        for number in numbers:
            assert ask(server.address, "decide", {"number": number, "same": same})[0] == 200

    clients = [Thread(target=decide_all, args=(same,)) for same in ("no", "unsure")]
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    rows = read_reviews(tmp_path / "reviews.csv")
    assert len(rows) == 2 * len(numbers) and len(set(rows)) == len(rows)


def _serve(desk: Desk, tell: Any) -> None:
    with ReviewServer(desk) as running:
        tell.send(running.address)
        running.serve_forever()


def test_a_killed_review_resumes(desk: Desk, tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    told, tell = context.Pipe()
    process = context.Process(target=_serve, args=(desk, tell))
    process.start()
    address, kept = told.recv(), []
    for pair in state(address)["pairs"][:3]:
        assert ask(address, "decide", {"number": pair["id"], "same": "no"})[0] == 200
        kept.append(pair["id"])
    os.kill(process.pid or 0, signal.SIGKILL)
    process.join()
    path = tmp_path / "reviews.csv"
    with path.open("ab") as file:
        file.write(b'"03&.png","x')  # what the kill may leave of a decision that was not answered
    with serving(desk) as again:
        found = state(again.address)["pairs"]
        assert {pair["id"] for pair in found if pair["answers"]} == set(kept)
        assert ask(again.address, "decide", {"number": kept[0], "same": "yes"})[0] == 200
    with path.open(newline="") as file:
        assert [row[2] for row in csv.reader(file)][1:] == ["no", "no", "no", "yes"]


# ------------------------------------------------------------------------------------------------- the command


def called(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["whaleid", *words])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0)


def test_the_command_lists_the_pairs(
    project: Project, desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given = project.competition.model_dump(mode="json", exclude={"rename_values"})
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(given))
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(project.recipe.model_dump(mode="json", exclude={"name"})))
    options = ["-c", str(tmp_path / "tiny.yaml"), "-r", str(tmp_path / "own.yaml")]
    assert called(monkeypatch, "review", *options, "--list", "-w", str(project.workspace.root.parent)) == 0
    assert capsys.readouterr().out.splitlines() == desk.lines()
    assert called(monkeypatch, "review", *options, "--list", "-w", str(tmp_path / "work")) == 2
    assert "make ensemble" in capsys.readouterr().err
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump({**given, "reviews": None}))
    assert called(monkeypatch, "review", *options) == 2
    assert "add `reviews: reviews.csv` to its YAML" in capsys.readouterr().err


def test_the_command_merges_files(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    add(project, "a", "b", "yes")
    reviews, out = tmp_path / "reviews.csv", tmp_path / "both.csv"
    assert called(monkeypatch, "review", "merge", str(reviews), str(reviews), "-o", str(out)) == 0
    assert capsys.readouterr().out == f"{out}: 1 decisions of 2 files\n"
    assert called(monkeypatch, "review", "merge", str(tmp_path / "none.csv"), "-o", str(out)) == 2


# ------------------------------------------------------------------------------------------------- the browser


def press(window: browser.Browser, key: str) -> None:
    strokes = [{"type": kind, "value": key} for kind in ("keyDown", "keyUp")]
    window.ask("/actions", {"actions": [{"type": "key", "id": "keyboard", "actions": strokes}]})


def wait(window: browser.Browser, condition: str) -> None:
    """Until a condition in JavaScript holds."""
    end = time.monotonic() + 60
    while not window.run(f"return Boolean({condition})"):
        assert time.monotonic() < end, condition
        time.sleep(0.05)


@pytest.mark.skipif(browser.WHERE is None, reason="chromedriver is not installed")
def test_keys_decide_in_a_browser(server: ReviewServer, tmp_path: Path) -> None:
    path = tmp_path / "reviews.csv"
    with browser.browser() as window:
        window.ask("/url", {"url": server.address})
        wait(window, "current && document.querySelector('figure img').naturalWidth")
        first = window.run("return current.id")
        press(window, "s")
        wait(window, f"current && current.id !== {first}")
        assert [row.same for row in read_reviews(path)] == ["yes"]
        assert window.run("return document.querySelector('#bar').value") == 1
        press(window, "z")
        wait(window, f"current.id === {first}")
        press(window, "d")
        wait(window, f"current && current.id !== {first}")
        press(window, "\ue012")  # left
        assert window.run("return current.answers[0].same") == "no"
        assert "different, said nora" in window.run("return document.querySelector('#answers').textContent")
        assert [row.same for row in read_reviews(path)] == ["yes", "", "no"]
        identity = window.run("return state.pairs[0].identity")
        window.run(
            "const box = document.querySelector('#identity'); box.value = arguments[0];"
            "box.dispatchEvent(new Event('input'))".replace("arguments[0]", json.dumps(identity))
        )
        assert window.run("return chosen().map(pair => pair.identity + pair.label)")
        assert all(identity in name for name in window.run("return chosen().map(pair => pair.identity + pair.label)"))
        assert window.console() == []
        assert all(request.startswith((server.address, "data:")) for request in window.requests())
