"""The page of what was tried: `make trust` runs the whole matrix and all spoilt inputs, and writes docs/trust.md."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: equal runs must add in one order
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from trust.fuzz import TARGETS, Target, fuzz, fuzzed_world
from trust.kills import Case, all_cases, undisturbed

PAGE = Path(__file__).resolve().parents[2] / "docs" / "trust.md"
BEGIN, END = "<!-- begin: replaced by `make trust` -->", "<!-- end -->"


def main() -> int:
    """Run everything; 1 where something was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=200, help="spoilt files of each kind")
    times = parser.parse_args().times
    with tempfile.TemporaryDirectory() as folder:
        matrix = undisturbed(Path(folder))
        cases = [_told(case) for case in all_cases(matrix)]
        pristine = fuzzed_world(matrix.world, Path(folder) / "fuzzed")
        spoilt = [_told(_spoilt(pristine, target, times)) for target in TARGETS]
    write_page(cases, spoilt)
    return int(any(case.problems for case in (*cases, *spoilt)))


def write_page(cases: list[Case], spoilt: list[Case]) -> None:
    """Put the tables of what was tried into the page."""
    tables = [*_table("what was done to it", cases), "", *_table("spoilt file", spoilt)]
    text = PAGE.read_text()
    made = "\n".join([BEGIN, "", *tables, "", END])
    PAGE.write_text(f"{text.partition(BEGIN)[0]}{made}{text.partition(END)[2]}")


def _told(case: Case) -> Case:
    print(f"{case.name}: {case.tried} times", *case.problems, sep="\n  ", flush=True)
    return case


def _spoilt(pristine: Path, target: Target, times: int) -> Case:
    found = [one for seed in range(times) if (one := fuzz(pristine, pristine.with_name("spoilt"), target, seed))]
    problems = [f"seed {one.seed}, {one.file}: {one.problem}" for one in found]
    return Case(f"{target.name}, read by `whaleid {target.reader}`", times, problems)


def _table(what: str, cases: list[Case]) -> list[str]:
    rows = [f"| {case.name} | {case.tried} | {len(case.problems) or 'none'} |" for case in cases]
    return [f"| {what} | times | problems |", "|---|--:|--:|", *rows]


if __name__ == "__main__":
    sys.exit(main())
