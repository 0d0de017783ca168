"""The page of what was tried: `make trust` runs every part and writes its table into docs/trust.md as it ends."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: equal runs must add in one order
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from trust.fuzz import TARGETS, Target, fuzz, fuzzed_world
from trust.kills import Case, all_cases, undisturbed
from trust.soak import growth, in_one_process, processes_in_a_row, soak_rows
from trust.world import make_world

PAGE = Path(__file__).resolve().parents[2] / "docs" / "trust.md"
Part = Callable[[Path, argparse.Namespace], tuple[list[Case], list[str]]]
"""Makes, in an empty folder, the cases of one part and the lines of its table."""


def main() -> int:
    """Run the parts; 1 where something was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=tuple(PARTS), nargs="+", default=list(PARTS), help="parts; default: all")
    parser.add_argument("--times", type=int, default=200, help="spoilt files of each kind")
    parser.add_argument("--runs", type=int, default=20, help="runs of the soak, in one process and as processes")
    arguments = parser.parse_args()
    found = False
    for name in arguments.only:
        with tempfile.TemporaryDirectory() as folder:
            cases, table = PARTS[name](Path(folder), arguments)
        write_table(name, table)
        found = found or any(case.problems for case in cases)
    return int(found)


def kill_part(folder: Path, arguments: argparse.Namespace) -> tuple[list[Case], list[str]]:
    """Kills, two runs at once, a full disk, a read-only folder, a clock that goes back."""
    cases = [_told(case) for case in all_cases(undisturbed(folder))]
    return cases, _table("what was done to it", cases)


def spoilt_part(folder: Path, arguments: argparse.Namespace) -> tuple[list[Case], list[str]]:
    """Files of every kind, spoilt in ways that a seed draws."""
    pristine = fuzzed_world(undisturbed(folder).world, folder / "fuzzed")
    cases = [_told(_spoilt(pristine, target, arguments.times)) for target in TARGETS]
    return cases, _table("spoilt file", cases)


def soak_part(folder: Path, arguments: argparse.Namespace) -> tuple[list[Case], list[str]]:
    """The pipeline again and again."""
    clean = make_world(folder / "clean")
    ways = {"one process": in_one_process, "processes in a row": processes_in_a_row}
    soaked = {name: way(clean, _empty(folder / way.__name__), arguments.runs) for name, way in ways.items()}
    rows = [row for name, uses in soaked.items() for row in soak_rows(name, uses)]
    head = ["| the pipeline in | run | memory, MB | open files | threads | temporary, MB |", "|---|" + "--:|" * 5]
    return [_told(Case(name, arguments.runs, growth(uses))) for name, uses in soaked.items()], [*head, *rows]


PARTS: dict[str, Part] = {"kills": kill_part, "spoilt": spoilt_part, "soak": soak_part}


def write_table(name: str, table: list[str]) -> None:
    """Put the table of a part between its two marks in the page."""
    begin, end = f"<!-- begin {name}: replaced by `make trust` -->", f"<!-- end {name} -->"
    before, _, rest = PAGE.read_text().partition(begin)
    PAGE.write_text("\n".join([f"{before}{begin}", "", *table, "", end]) + rest.partition(end)[2])


def _empty(folder: Path) -> Path:
    folder.mkdir()
    return folder


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
