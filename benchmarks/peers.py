"""whaleid and its peers on the same cores and minutes: a row for each program, competition and number of minutes.

    .venv/bin/python benchmarks/peers.py                 # all rows that are missing, one after the other
    .venv/bin/python benchmarks/peers.py --peer pml --competition lion --minutes 5
    .venv/bin/python benchmarks/peers.py --peer pml --competition lion --minutes 1 --trial

Each peer runs in an environment of its own (`peer_environments.py`), reads the same photographs, starts from the same
ImageNet weights, and writes guesses, which are scored as `whaleid score` does. In the peers' favour: their minutes
begin once the program is loaded, and of those that only train end before the last pass for embeddings; the threshold
of the unknown identity is the best one on the solution. whaleid is given the solution for the score alone, and its
minutes hold all that `whaleid leaderboard` does. Rows are kept in benchmarks/results/peers.json as they are done, and
docs/results.md is written from them.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from peer_environments import PEERS
from peer_report import write_page
from peer_rows import WHALEID, Order, run_row

from whaleid.config.files import load_competition
from whaleid.utils.errors import WhaleidError
from whaleid.utils.files import read_json, write_json

RESULTS = Path(__file__).resolve().parent / "results" / "peers.json"
COMPETITIONS, MINUTES = ["lion", "cattle"], [5.0, 15.0, 30.0, 60.0]
Row = dict[str, Any]


def main() -> int:
    """Run the rows that are missing; 2 where the options are wrong."""
    given = parser().parse_args()
    try:
        run_all(given)
    except WhaleidError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [WHALEID, *PEERS]
    made.add_argument("--peer", nargs="+", choices=names, default=names)
    made.add_argument("--competition", nargs="+", default=COMPETITIONS, help="names or YAMLs, with a solution")
    made.add_argument("--minutes", nargs="+", type=float, default=MINUTES)
    made.add_argument("--threads", type=int, default=2, help="cores of each program")
    made.add_argument("--seed", type=int, default=0, help="of the peers")
    made.add_argument("--again", action="store_true", help="rows that are there, too")
    made.add_argument("--trial", action="store_true", help="print the rows, keep nothing: not comparable")
    made.add_argument("--folder", type=Path, default=Path("work/peers"), help="environments and work folders")
    made.add_argument("--page", action="store_true", help="run nothing, write docs/results.md from the rows")
    return made


def run_all(given: argparse.Namespace) -> None:
    """Run the rows in the order of the minutes, so that a short look comes first, and keep each when it is done."""
    rows = read_json(RESULTS)["rows"] if RESULTS.is_file() else []
    if given.page:
        write_page(rows)
        return
    for order in wanted(given, [] if given.trial or given.again else rows):
        print(f"{order.competition}, {order.peer}, {order.minutes:g} minutes", flush=True)
        row = run_row(order)
        print(told(row), flush=True)
        if not given.trial:
            rows = merged(rows, row)
            write_json(RESULTS, {"rows": rows})
            write_page(rows)


def wanted(given: argparse.Namespace, done: list[Row]) -> list[Order]:
    """The rows to run: those that are asked for and not done."""
    there = {key(row) for row in done}
    names = {given_name: load_competition(given_name).name for given_name in given.competition}
    return [
        Order(peer, competition, minutes, given.threads, given.seed, given.folder.resolve())
        for minutes in sorted(given.minutes)
        for competition, name in names.items()
        for peer in given.peer
        if (name, peer, minutes) not in there
    ]


def key(row: Row) -> tuple[str, str, float]:
    """What a row is known by."""
    return row["competition"], row["peer"], row["minutes"]


def merged(rows: list[Row], row: Row) -> list[Row]:
    """Rows with this one in place of an earlier one like it, in order."""
    order = [WHALEID, *PEERS]
    others = [other for other in rows if key(other) != key(row)]
    return sorted([*others, row], key=lambda some: (some["competition"], order.index(some["peer"]), some["minutes"]))


def told(row: Row) -> str:
    """One line for the screen."""
    if "reason" in row:
        return f"  not run: {row['reason']}"
    return (
        f"  MAP@{row['k']} {row['map']:.3f} [{row['low']:.3f}, {row['high']:.3f}], top-1 {row['top1']:.3f}; "
        f"{row['taken']:.1f} minutes, {row['processor_minutes']:.1f} of the processor, load before "
        f"{row['load_before']:.1f}{'; not comparable' if row['nice'] else ''}; {row.get('facts', '')}"
    )


if __name__ == "__main__":
    sys.exit(main())
