"""Metrics of the forms of answer, against naive loops and scikit-learn; their files, and faults of these."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import adjusted_rand_score

from whaleid.cli import main as cli
from whaleid.evaluation.clusters import adjusted_rand_index
from whaleid.evaluation.forms import score_files
from whaleid.evaluation.one_confident import global_average_precision
from whaleid.evaluation.one_or_unknown import baks, baus
from whaleid.evaluation.pairs import metric, precision_of_queries
from whaleid.evaluation.rank_metrics import cmc, mean_inverse_negative_penalty, recall_at_k
from whaleid.evaluation.ranked_images import average_precision_at_k
from whaleid.evaluation.rejection import rejection_curve, threshold_for_false_acceptance
from whaleid.utils.errors import WhaleidError

NEW = "new_individual"
LEVELS = st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.9])


def naive_average_precision(similarity: list[float], right: list[bool]) -> float:
    """The gain of recall at each different similarity, times the precision there."""
    total = before = 0.0
    for level in sorted(set(similarity), reverse=True):
        found = [one for value, one in zip(similarity, right, strict=True) if value >= level]
        recall = sum(found) / sum(right)
        total, before = total + (recall - before) * sum(found) / len(found), recall
    return total


def put(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def scored(place: Path, form: str, submission: str, solution: str, **options: object):
    return score_files(put(place / "sub.csv", submission), put(place / "sol.csv", solution), form, **options)  # type: ignore[arg-type]


# -------------------------------------------------------------------------------------------------------- arrays


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abcd"), st.sampled_from(["a", "b", NEW])), min_size=1, max_size=30))
def test_baks_and_baus_equal_naive_loops(rows: list[tuple[str, str]]) -> None:
    truth, answer = (np.array(column) for column in zip(*rows, strict=True))
    known = np.isin(truth, ["a", "b"])
    expected: dict[bool, list[float]] = {True: [], False: []}
    for identity in set(truth):
        given_ones = [one for true, one in rows if true == identity]
        wanted = identity if identity in "ab" else NEW
        expected[identity in "ab"].append(sum(one == wanted for one in given_ones) / len(given_ones))
    for value, shares in ((baks(truth, answer, known), expected[True]), (baus(truth, answer, known), expected[False])):
        assert value == pytest.approx(np.mean(shares) if shares else float("nan"), nan_ok=True)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=40))
def test_adjusted_rand_index_equals_scikit_learn(rows: list[tuple[int, int]]) -> None:
    truth, cluster = np.array(rows).T
    assert adjusted_rand_index(truth, cluster) == pytest.approx(adjusted_rand_score(truth, cluster), abs=1e-12)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(0, 3)), min_size=2, max_size=12))
def test_weighted_index_leaves_out_pairs_of_copies(rows: list[tuple[int, int, int]]) -> None:
    copies = [i for i, row in enumerate(rows) for _ in range(row[2])]
    both = ours = theirs = total = 0
    for place, i in enumerate(copies):
        for j in copies[:place]:
            if i != j:
                same, together = rows[i][0] == rows[j][0], rows[i][1] == rows[j][1]
                both, ours, theirs, total = both + (same and together), ours + same, theirs + together, total + 1
    truth, cluster, weights = np.array(rows).T
    expected = 1.0
    if not both == ours == theirs:
        chance = ours * theirs / total
        expected = (both - chance) / ((ours + theirs) / 2 - chance)
    assert adjusted_rand_index(truth, cluster, weights.astype(float)) == pytest.approx(expected, abs=1e-9)


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(LEVELS, st.booleans()), max_size=20), st.integers(0, 5))
def test_gap_equals_a_naive_loop(rows: list[tuple[float, bool]], silent: int) -> None:
    relevant = sum(right for _, right in rows) + silent
    if not relevant:
        return
    total, found = 0.0, 0
    for place, (_, right) in enumerate(sorted(rows, key=lambda row: -row[0]), start=1):
        found += right
        total += found / place if right else 0.0
    confidence, right = np.array([row[0] for row in rows]), np.array([row[1] for row in rows], dtype=bool)
    assert global_average_precision(confidence, right, relevant) == pytest.approx(total / relevant)


@settings(max_examples=80, deadline=None)
@given(st.permutations("abcdefgh"), st.sets(st.sampled_from("abcdefghij"), min_size=1), st.integers(1, 10))
def test_average_precision_at_k_equals_a_naive_loop(ranked: list[str], relevant: set[str], k: int) -> None:
    total = 0.0
    for place in range(1, min(k, len(ranked)) + 1):
        if ranked[place - 1] in relevant:
            total += sum(one in relevant for one in ranked[:place]) / place
    assert average_precision_at_k(ranked, relevant, k) == pytest.approx(total / min(len(relevant), k))


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("pqrst"), LEVELS, st.booleans()), min_size=1, max_size=40))
def test_precisions_of_queries_and_their_balanced_mean_equal_a_naive_loop(rows: list[tuple[str, float, bool]]) -> None:
    identity_of = dict(zip("pqrst", "xxyyz", strict=True))
    by_identity: dict[str, list[float]] = {}
    for query in "pqrst":
        mine = [(value, right) for one, value, right in rows if one == query]
        if any(right for _, right in mine):
            value = naive_average_precision([value for value, _ in mine], [right for _, right in mine])
            by_identity.setdefault(identity_of[query], []).append(value)
    query = np.array([row[0] for row in rows])
    identity = np.array([identity_of[one] for one in query])
    found = precision_of_queries(query, identity, np.array([row[1] for row in rows]), np.array([r[2] for r in rows]))
    means = found.groupby("truth")["precision"].mean().to_dict()
    assert means == pytest.approx({name: np.mean(values) for name, values in by_identity.items()})
    if means:
        assert metric(found)(np.ones(len(found), int)) == pytest.approx(np.mean(list(means.values())))


def test_equal_similarities_are_one_step() -> None:
    same = np.array(["q"] * 4)
    found = precision_of_queries(same, same, np.zeros(4), np.array([True, False, False, False]))
    assert found.values.tolist() == [["q", "q", pytest.approx(0.25)]]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sets(st.integers(1, 12)), st.integers(1, 3)), min_size=1, max_size=10), st.integers(1, 12))
def test_cmc_recall_and_minp_equal_naive_loops(rows: list[tuple[set[int], int]], k: int) -> None:
    ranks = [np.array(sorted(found), dtype=int) for found, _ in rows]
    relevant = np.array([max(len(found), 1) + missing - 1 for found, missing in rows])
    first = np.array([min(found, default=0) for found, _ in rows])
    hits = [[any(rank <= depth for rank in found) for found, _ in rows] for depth in range(1, k + 1)]
    assert cmc(first, k) == pytest.approx([sum(row) / len(rows) for row in hits])
    recalls = [sum(rank <= k for rank in found) / int(n) for (found, _), n in zip(rows, relevant, strict=True)]
    assert recall_at_k(ranks, relevant, k) == pytest.approx(sum(recalls) / len(rows))
    penalties = [
        n / max(found) if len(found) == n else 0 for (found, _), n in zip(rows, relevant.tolist(), strict=True)
    ]
    assert mean_inverse_negative_penalty(ranks, relevant) == pytest.approx(sum(penalties) / len(rows))


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(LEVELS, st.booleans()), min_size=2, max_size=30), st.sampled_from([0.0, 0.1, 0.5, 1.0]))
def test_the_threshold_for_a_false_acceptance_is_the_lowest(rows: list, rate: float) -> None:
    confidence, unknown = np.array([row[0] for row in rows]), np.array([row[1] for row in rows])
    if unknown.all() or not unknown.any():
        with pytest.raises(WhaleidError, match="both known and unknown"):
            threshold_for_false_acceptance(confidence, unknown, rate)
        return
    chosen = threshold_for_false_acceptance(confidence, unknown, rate)
    allowed = [one for one in [*confidence, np.inf] if np.mean(confidence[unknown] >= one) <= rate]
    assert chosen == min(allowed)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(LEVELS, st.booleans()), min_size=1, max_size=30))
def test_rejection_curve_equals_a_naive_loop(rows: list[tuple[float, bool]]) -> None:
    rejected, accuracy = rejection_curve(np.array([row[0] for row in rows]), np.array([row[1] for row in rows]))
    for place, threshold in enumerate(sorted({row[0] for row in rows}, reverse=True)):
        kept = [right for value, right in rows if value >= threshold]
        assert rejected[place] == pytest.approx(1 - len(kept) / len(rows))
        assert accuracy[place] == pytest.approx(sum(kept) / len(kept))
    assert len(rejected) == len({row[0] for row in rows})


# --------------------------------------------------------------------------------------------------------- files


def test_one_or_unknown_by_data_set_and_nan_counts_zero(tmp_path: Path) -> None:
    solution = (
        "image_id,identity,dataset,known\n1,t_a,t,true\n2,t_a,t,true\n3,t_b,t,true\n4,t_c,t,false\n5,t_d,t,false\n"
        "6,l_a,l,true\n"
    )
    submission = f"image_id,identity\n6,l_a\n1,t_a\n2,{NEW}\n3,t_b\n4,{NEW}\n5,t_a\n"
    score = scored(tmp_path, "one_or_unknown", submission, solution)
    assert score.as_json()["parts"] == pytest.approx(
        {"l": 0.0, "l BAKS": 1.0, "l BAUS": 0.0, "t": np.sqrt(0.75 * 0.5), "t BAKS": 0.75, "t BAUS": 0.5}
    )
    assert score.value == pytest.approx(np.sqrt(0.375) / 2)
    assert score.low <= score.value <= score.high and score.low < score.high
    plain = scored(tmp_path, "one_or_unknown", "i,l\n1,a\n2,new\n", "i,l\n1,a\n2,new\n", unknown="new")
    assert plain.value == 1.0 and plain.as_json()["parts"] == {"BAKS": 1.0, "BAUS": 1.0}


def test_clusters_by_data_set(tmp_path: Path) -> None:
    solution = "image_id,identity,dataset\n1,a,L\n2,a,L\n3,b,L\n4,c,S\n5,d,S\n6,d,S\n"
    submission = (
        "image_id,cluster\n1,cluster_L_1\n2,cluster_L_1\n3,cluster_L_2\n4,cluster_S_1\n5,cluster_S_1\n6,cluster_S_2\n"
    )
    score = scored(tmp_path, "clusters", submission, solution)
    expected = {"L": 1.0, "S": adjusted_rand_score([0, 1, 1], [0, 0, 1])}
    assert score.as_json()["parts"] == pytest.approx(expected)
    assert score.value == pytest.approx(np.mean(list(expected.values()))) and score.low <= score.value <= score.high


def test_one_confident(tmp_path: Path) -> None:
    solution = "id,landmarks\na,7\nb,8 9\nc,\nd,7\n"
    score = scored(tmp_path, "one_confident", "id,landmarks\nd,\nc,7 0.8\nb,9 0.5\na,7 0.9\n", solution)
    assert score.value == pytest.approx((1 + 2 / 3) / 3) and score.line("x").startswith("GAP (x): 0.55556")
    point = {"threshold": 0.9, "false_acceptance": 0.0, "acceptance": pytest.approx(1 / 3)}
    assert score.details() == {"rejection": [point | {"rate": rate} for rate in (0.01, 0.05, 0.1)]}
    sure = scored(tmp_path, "one_confident", "id,landmarks\nd,7 0.5\nc,7 0.8\nb,\na,\n", solution)
    assert {one["threshold"] for one in sure.details()["rejection"]} == {None}


def test_ranked_images(tmp_path: Path) -> None:
    score = scored(tmp_path, "ranked_images", "id,images\nq,x y z\nr,\ns,x\n", "id,images\nq,z x\nr,y\ns,\n", k=3)
    assert score.value == pytest.approx(((1 + 2 / 3) / 2 + 0) / 2) and score.queries == 2


def test_pairs(tmp_path: Path) -> None:
    head = "row_id,query_image,gallery_image,query_identity,gallery_identity\n"
    names = {"1": "a", "2": "a", "3": "b", "4": "b", "5": "b"}
    pairs = [(one, other) for one in names for other in names if one != other]
    lines = [f"{i},{one},{other},{names[one]},{names[other]}" for i, (one, other) in enumerate(pairs)]
    values = np.random.default_rng(0).random(len(pairs))
    submission = "row_id,similarity\n" + "".join(f"{i},{value}\n" for i, value in enumerate(values))
    score = scored(tmp_path, "pairs", submission, head + "\n".join(lines) + "\n")
    by_identity: dict[str, list[float]] = {"a": [], "b": []}
    for query, name in names.items():
        mine = [i for i, pair in enumerate(pairs) if pair[0] == query]
        right = [names[pairs[i][1]] == name for i in mine]
        by_identity[name].append(naive_average_precision(values[mine].tolist(), right))
    assert score.value == pytest.approx(np.mean([np.mean(one) for one in by_identity.values()]))
    assert score.queries == 5


@pytest.mark.parametrize(
    ("form", "submission", "solution", "message"),
    [
        ("one_or_unknown", "i,l\na,\n", "i,l\na,x\n", "sub.csv: row 2, column l: is empty; one label"),
        ("one_or_unknown", "i,l\na,x y\n", "i,l\na,x\n", "row 2, column l: 'x y' holds a space"),
        ("one_or_unknown", "i,l\na,x\nb,x\n", "i,l\na,x\n", r"1 image\(s\) are not in"),
        (
            "one_or_unknown",
            "i,l\na,x\n",
            "i,l,known\na,x,perhaps\n",
            "sol.csv: row 2, column known: 'perhaps' is",
        ),
        (
            "clusters",
            "i,c\na,cluster_L_1\nb,cluster_S_1\n",
            "i,l,dataset\na,x,L\nb,x,L\n",
            "sub.csv: row 3, column c: ",
        ),
        ("clusters", "i,c\na,1\n", "i,l,dataset\na,x,\n", "sol.csv: row 2, column dataset: is empty"),
        (
            "one_confident",
            "i,l\na,x\nb,7\n",
            "i,l\na,x\nb,\n",
            r"row 2, column l: 'x' is not a .*\(1 more such",
        ),
        ("one_confident", "i,l\na,x high\n", "i,l\na,x\n", "row 2, column l: 'x high' has a confidence"),
        ("one_confident", "i,l\na,x nan\n", "i,l\na,x\n", "row 2, column l: 'x nan' has a confidence"),
        ("one_confident", "i,l\na,x 1\n", "i,l\na,\n", "sol.csv: no row has a label"),
        ("ranked_images", "i,l\na,x y x\n", "i,l\na,x\n", "row 2, column l: 'x y x' ... names an image twice"),
        ("ranked_images", "i,l\na," + "x " * 101 + "\n", "i,l\na,x\n", "holds more than 100 images"),
        ("pairs", "row_id,s\n0,high\n", "row_id,query_image\n0,a\n", "row 2, column s: 'high' is not a number"),
        ("pairs", "row_id,s\n0,inf\n", "row_id,query_image\n0,a\n", "row 2, column s: 'inf' is not a number"),
        ("pairs", "row_id,s\n0,1\n", "row_id,query_image\n0,a\n", "sol.csv: one column 'query_identity' is needed"),
        ("pears", "i,l\na,x\n", "i,l\na,x\n", "'pears' is not known; choose one of topk, one_or_unknown"),
    ],
)
def test_faults_are_named_by_row_and_column(
    tmp_path: Path, form: str, submission: str, solution: str, message: str
) -> None:
    with pytest.raises(WhaleidError, match=message) as error:
        scored(tmp_path, form, submission, solution)
    assert "\n" not in str(error.value)


def test_options_and_forms_that_do_not_fit(tmp_path: Path) -> None:
    with pytest.raises(WhaleidError, match="the form clusters has no --k"):
        scored(tmp_path, "clusters", "i,c\na,1\n", "i,l\na,x\n", k=5)


def test_the_command_prints_the_form_and_more_as_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def printed(submission: str, solution: str, *words: str) -> str:
        files = [str(put(tmp_path / "a.csv", submission)), str(put(tmp_path / "b.csv", solution))]
        monkeypatch.setattr(sys, "argv", ["whaleid", "score", *files, *words])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        found = capsys.readouterr()
        assert not ended.value.code, found.err
        return found.out

    clusters = ("i,c\na,cluster_L_1\nb,cluster_L_1\n", "i,l,dataset\na,x,L\nb,x,L\n")
    assert printed(*clusters, "--form", "clusters") == (
        "ARI (solution): 1.00000\n95 % interval 1.00000 to 1.00000, 2 queries\n  L: 1.00000\n"
    )
    values = json.loads(printed(*clusters, "--form", "clusters", "--json"))
    assert (values["metric"], values["value"], values["parts"]) == ("ARI", 1.0, {"L": 1.0})
    topk = ("i,l\na,x y\nb,y z x\n", "i,l\na,x\nb,x\n")
    assert printed(*topk, "-k", "2").startswith("MAP@2 (solution): 0.50000\n95 % interval ")
    values = json.loads(printed(*topk, "-k", "2", "--json"))
    assert (values["map"], values["cmc"], values["minp"]) == (0.5, [0.5, 0.5], pytest.approx((1 + 1 / 3) / 2))
