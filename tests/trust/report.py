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
from trust.soak import Use, growth, in_one_process, processes_in_a_row, soak_rows
from trust.world import make_world

PAGE = Path(__file__).resolve().parents[2] / "docs" / "trust.md"
BEGIN, END = "<!-- begin: replaced by `make trust` -->", "<!-- end -->"


def main() -> int:
    """Run everything; 1 where something was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=200, help="spoilt files of each kind")
    parser.add_argument("--runs", type=int, default=20, help="runs of the soak, in one process and as processes")
    arguments = parser.parse_args()
    times, runs = arguments.times, arguments.runs
    with tempfile.TemporaryDirectory() as folder:
        matrix = undisturbed(Path(folder))
        cases = [_told(case) for case in all_cases(matrix)]
        pristine = fuzzed_world(matrix.world, Path(folder) / "fuzzed")
        spoilt = [_told(_spoilt(pristine, target, times)) for target in TARGETS]
        clean = make_world(Path(folder) / "clean")
        ways = {"one process": in_one_process, "processes in a row": processes_in_a_row}
        soaked = {name: way(clean, _empty(Path(folder) / way.__name__), runs) for name, way in ways.items()}
    soaks = [_told(Case(name, runs, growth(uses))) for name, uses in soaked.items()]
    write_page(cases, spoilt, soaked)
    return int(any(case.problems for case in (*cases, *spoilt, *soaks)))


def _empty(folder: Path) -> Path:
    folder.mkdir()
    return folder


def write_page(cases: list[Case], spoilt: list[Case], soaked: dict[str, list[Use]]) -> None:
    """Put the tables of what was tried into the page."""
    rows = [row for name, uses in soaked.items() for row in soak_rows(name, uses)]
    soak = [
        "| the pipeline in | run | memory, MB | open files | threads | temporary, MB |",
        "|---|" + "--:|" * 5,
        *rows,
    ]
    tables = [*_table("what was done to it", cases), "", *_table("spoilt file", spoilt), "", *soak]
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
