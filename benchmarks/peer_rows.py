"""One row of the peers' table: a program is given a competition and minutes, and its submission is scored."""

from __future__ import annotations

import csv
import os
import resource
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from peer_environments import PEERS, PROGRAMS, peer_python

from whaleid.config import Competition
from whaleid.config.files import load_competition
from whaleid.config.settings import read_settings
from whaleid.data.competition import listed_names, read_rows
from whaleid.ensemble.protocol import Targets
from whaleid.ensemble.unknown import fit_threshold, with_unknown
from whaleid.evaluation.forms import TOPK, write_submission
from whaleid.evaluation.topk import score_submission
from whaleid.models.weights import ensure_weights, find_weights
from whaleid.pipeline.score import read_truths
from whaleid.pipeline.submission import known_labels, submission_template
from whaleid.retrieval.candidates import Candidates
from whaleid.utils.errors import WhaleidError
from whaleid.utils.files import read_json, write_json

WHALEID = "whaleid"
BACKBONE = "tf_efficientnet_lite0"
SMALL, LARGE, LONG = 128, 224, 15.0
"""Side of the peers' pictures: SMALL, and LARGE, the backbone's own, from LONG minutes on. A core trains some 75 and 25
of them a second: thousands of photographs are then seen ten times and more."""


@dataclass(frozen=True)
class Order:
    """A row to run. competition: name or YAML. folder: where environments, tasks and work folders are made."""

    peer: str
    competition: str
    minutes: float
    threads: int
    seed: int
    folder: Path

    @property
    def place(self) -> Path:
        """Folder of the row."""
        return self.folder / f"{Path(self.competition).stem}-{self.peer}-{self.minutes:g}"


def run_row(order: Order) -> dict[str, Any]:
    """The row: score, time and load; where it could not be run, the reason in one line.

    The program may use the first `threads` cores of this process only.
    """
    competition = load_competition(order.competition)
    check_competition(competition)
    shutil.rmtree(order.place, ignore_errors=True)
    order.place.mkdir(parents=True)
    row: dict[str, Any] = {
        "peer": order.peer,
        "competition": competition.name,
        "minutes": order.minutes,
        "threads": order.threads,
        "seed": order.seed,
    }
    try:
        made = run_whaleid(order, competition) if order.peer == WHALEID else run_peer(order, competition)
    except WhaleidError as reason:
        return row | {"reason": str(reason).splitlines()[0]}
    return row | made


def check_competition(competition: Competition) -> None:
    """Raise WhaleidError where a competition asks for more than the peers' programs can do."""
    if competition.answer.form != TOPK or competition.test is None or competition.solution is None:
        raise WhaleidError(
            f"competition {competition.name}: ranked guesses of test images and a solution are needed to score peers"
        )
    if competition.boxes is not None:
        raise WhaleidError(f"competition {competition.name}: the peers read whole pictures; take `boxes` out")


# ----------------------------------------------------------------------------------------------------- runs


def run_whaleid(order: Order, competition: Competition) -> dict[str, Any]:
    """The pipeline itself, `whaleid leaderboard`, in a work folder of its own."""
    command = [sys.executable, "-m", "whaleid", "leaderboard", "-c", order.competition]
    measured = timed([*command, "--minutes", f"{order.minutes:g}", "--work", str(order.place)], order, {})
    said = (order.place / "output.txt").read_text().splitlines()
    written = [line.removeprefix("submission: ") for line in said if line.startswith("submission: ")]
    return measured | scored(Path(written[-1]), competition)


def run_peer(order: Order, competition: Competition) -> dict[str, Any]:
    """A peer's program in its environment; its guesses become a submission."""
    peer = PEERS[order.peer]
    python = peer_python(order.peer, order.folder)
    names = write_task(order, competition)
    command = [str(python), str(PROGRAMS / peer.program), str(order.place), *peer.options]
    # Progress bars would fill the output; the libraries that count cores themselves count the whole machine's.
    quiet = {"TQDM_DISABLE": "1", "OMP_NUM_THREADS": str(order.threads)}
    measured = timed(command, order, quiet)
    threshold, submission = write_guesses(order.place, competition, names)
    facts = read_json(order.place / "facts.json")
    return measured | scored(submission, competition) | {"threshold": threshold, "facts": facts}


def timed(command: list[str], order: Order, more: dict[str, str]) -> dict[str, Any]:
    """Run a command on the row's cores: minutes by the clock and of the processor, and the machine's load before.

    Raises WhaleidError with the last line of what it said where it fails. Its output goes to `output.txt`.
    """
    cores = sorted(os.sched_getaffinity(0))[: order.threads]
    if len(cores) < order.threads:
        raise WhaleidError(f"--threads {order.threads}: this process may use {len(cores)} cores")
    load, before, begin = os.getloadavg()[0], resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    output = order.place / "output.txt"
    with output.open("w") as file:
        done = subprocess.run(
            command,
            stdout=file,
            stderr=subprocess.STDOUT,
            env={**os.environ, **more},
            preexec_fn=lambda: os.sched_setaffinity(0, cores),
        )
    taken, after = time.monotonic() - begin, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        said = [line for line in output.read_text().splitlines() if line.strip()]
        raise WhaleidError(f"{order.peer}: {said[-1] if said else f'exit code {done.returncode}'} (see {output})")
    processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {
        "taken": round(taken / 60, 2),
        "processor_minutes": round(processor / 60, 2),
        "load_before": round(load, 2),
        "nice": os.nice(0),
    }


def write_task(order: Order, competition: Competition) -> dict[str, str]:
    """Write `task.json` and `images.csv` of the peer's program; returns the name of the query at each path.

    Labelled images of the unknown identity are left out: a peer has no use for them.
    """
    weights = read_settings().weights
    ensure_weights(BACKBONE, "imagenet", weights)
    task = {
        "minutes": order.minutes,
        "threads": order.threads,
        "seed": order.seed,
        "k": competition.k,
        "side": LARGE if order.minutes >= LONG else SMALL,
        "backbone": BACKBONE,
        "weights": str(find_weights(BACKBONE, "imagenet", weights)),
    }
    write_json(order.place / "task.json", task)
    rows = read_rows(competition)
    rows = rows[(rows["split"] == "test") | (rows["identity"] != competition.unknown)]
    paths = [str(competition.root / path) for path in rows["path"]]
    query = (rows["split"] == "test").to_numpy()
    with (order.place / "images.csv").open("w", newline="") as file:
        identities = rows["identity"].fillna("")
        cells = zip(paths, identities, query.astype(int), strict=True)
        csv.writer(file).writerows([["path", "identity", "query"], *cells])
    names = listed_names(competition, rows["image"][query])
    return dict(zip(np.array(paths)[query].tolist(), names, strict=True))


# -------------------------------------------------------------------------------------------------- scoring


def write_guesses(place: Path, competition: Competition, names: dict[str, str]) -> tuple[float | None, Path]:
    """Write `submission.csv` of a peer's candidates; returns the threshold that was taken, and the file.

    No peer has a rule for the unknown identity. It is guessed before all identities with a score below the threshold
    that is best on the solution, which no other program is given.
    """
    lists = read_candidates(place / "candidates.csv", names)
    threshold = best_threshold(lists, competition)
    placed = with_unknown(lists, threshold, competition.unknown)
    rows = [" ".join(placed.classes[codes[codes >= 0][: competition.k]]) for codes in placed.codes]
    cells = dict(zip(placed.queries.tolist(), rows, strict=True))
    path = place / "submission.csv"
    sample = submission_template(competition, place)
    write_submission(TOPK, path, cells, sample, known_labels(competition), competition.k)
    return threshold, path


def read_candidates(path: Path, names: dict[str, str]) -> Candidates:
    """A peer's `candidates.csv`. names: of the query at each path."""
    table = pd.read_csv(path, dtype={"query": str, "identity": str}, keep_default_na=False)
    code, classes = pd.factorize(table["identity"], sort=True)
    row, queries = pd.factorize(table["query"])
    column = table.groupby("query").cumcount()
    codes = np.full((len(queries), column.max() + 1), -1)
    scores = np.full(codes.shape, -np.inf, np.float32)
    codes[row, column], scores[row, column] = code, table["score"]
    return Candidates(np.array([names[query] for query in queries]), np.array(classes, str), codes, scores)


def best_threshold(lists: Candidates, competition: Competition) -> float | None:
    """The threshold with the highest MAP@k on the solution; None where the unknown identity may not be guessed."""
    truth_of = read_truths(competition, lists.queries)
    assert truth_of is not None, "check_competition has seen a solution"
    truth = np.array([truth_of[query] for query in lists.queries.tolist()])
    code = pd.Index(lists.classes).get_indexer(truth)
    code[code < 0] = len(lists.classes)  # of an identity that nobody guesses: wrong, whatever the threshold
    code[truth == competition.unknown] = -1
    weights, unknown = np.ones(len(truth)), competition.unknown is not None
    return fit_threshold(lists, Targets(code, weights, competition.k, unknown))


def scored(submission: Path, competition: Competition) -> dict[str, Any]:
    """MAP@k with its 95 % interval and top-1 on the solution, as `whaleid score` computes them."""
    score = score_submission(submission, competition.root / str(competition.solution), competition.k)
    return {
        "k": competition.k,
        "map": round(score.map, 5),
        "low": round(score.low, 5),
        "high": round(score.high, 5),
        "top1": round(score.cmc[0], 5),
        "queries": score.queries,
    }
