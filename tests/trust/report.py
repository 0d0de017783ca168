"""The page of what was tried: `make trust` runs the whole matrix and all spoilt inputs, and writes docs/trust.md."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: equal runs must add in one order
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from trust.fuzz import TARGETS, Found, Target, fuzz, fuzzed_world
from trust.kills import Case, all_cases, undisturbed

PAGE = Path(__file__).resolve().parents[2] / "docs" / "trust.md"
BEGIN, END = "<!-- begin: made by `make trust` -->", "<!-- end -->"


def main() -> int:
    """Run everything; 1 where something was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=200, help="spoilt files of each kind")
    times = parser.parse_args().times
    with tempfile.TemporaryDirectory() as folder:
        matrix = undisturbed(Path(folder))
        cases = [_told(case) for case in all_cases(matrix)]
        pristine = fuzzed_world(matrix.world, Path(folder) / "fuzzed")
        found = {target: _spoilt(pristine, target, times) for target in TARGETS}
    text = PAGE.read_text()
    made = "\n".join([*_rows(cases), "", *_fuzzed(found, times)])
    PAGE.write_text(f"{text.partition(BEGIN)[0]}{BEGIN}\n\n{made}\n\n{END}{text.partition(END)[2]}")
    return int(any(case.problems for case in cases) or any(found.values()))


def _told(case: Case) -> Case:
    print(case.name, case.tried, *case.problems, sep="\n  ", flush=True)
    return case


def _spoilt(pristine: Path, target: Target, times: int) -> list[Found]:
    found = [one for seed in range(times) if (one := fuzz(pristine, pristine.with_name("spoilt"), target, seed))]
    print(target.name, times, *found, sep="\n  ", flush=True)
    return found


def _rows(cases: list[Case]) -> list[str]:
    rows = [f"| {case.name} | {case.tried} | {len(case.problems) or 'none'} |" for case in cases]
    return ["| what was done to it | times | problems |", "|---|--:|--:|", *rows]


def _fuzzed(found: dict[Target, list[Found]], times: int) -> list[str]:
    rows = [
        f"| {target.name} | `whaleid {target.reader}` | {times} | {len(one) or 'none'} |"
        for target, one in found.items()
    ]
    return ["| spoilt file | read by | times | problems |", "|---|---|--:|--:|", *rows]


if __name__ == "__main__":
    sys.exit(main())
