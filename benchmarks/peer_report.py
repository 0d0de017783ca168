"""The peers' rows as a table and a plot, put between the markers of docs/results.md."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from peer_environments import PEERS
from peer_rows import WHALEID

from whaleid.config.settings import repository_root
from whaleid.utils.files import atomic_path

PAGE = repository_root() / "docs" / "results.md"
PLOT = "images/peers.svg"
BEGIN, END = "<!-- begin: replaced by `make bench-peers` -->", "<!-- end -->"
TITLES = {WHALEID: "**whaleid**", **{name: peer.title for name, peer in PEERS.items()}}
_COLORS = ("#1f77a4", "#d95f02", "#5b8c3a", "#a3b86c", "#8a5a9e", "#666666")
_SIZE = (8.0, 2.9)  # inches of a row of the plot

Row = dict[str, Any]


def write_page(rows: list[Row], page: Path = PAGE) -> None:
    """Put the table, what was left out, and the plot (beside the page) into the page."""
    done = [row for row in rows if "map" in row]
    plot = [f"![MAP@k and top-1 against minutes]({PLOT})", ""] if done else []
    if done:
        draw(done, page.parent / PLOT)
    made = "\n".join([BEGIN, "", *plot, *(table(rows) if rows else ["No row was run yet."]), "", END])
    text = page.read_text()
    with atomic_path(page) as temporary:
        temporary.write_text(f"{text.partition(BEGIN)[0]}{made}{text.partition(END)[2]}")


def table(rows: list[Row]) -> list[str]:
    """Lines of Markdown: one row for each set and program, a column for each number of minutes."""
    minutes = sorted({row["minutes"] for row in rows})
    head = " | ".join(f"{value:g} minutes" for value in minutes)
    lines = [f"| data | program | {head} |", "|---|---|" + "---|" * len(minutes)]
    at = {(row["competition"], row["peer"], row["minutes"]): row for row in rows}
    for name in dict.fromkeys(row["competition"] for row in rows):
        for peer, title in TITLES.items():
            cells = [cell(at.get((name, peer, value))) for value in minutes]
            if any(cells):
                lines.append(f"| {name} | {title} | {' | '.join(cells)} |")
    return [*lines, *remarks(rows)]


def cell(row: Row | None) -> str:
    """`0.512 ± 0.031, 48.1 % (5.2)`: MAP@k with half its interval, top-1, minutes taken."""
    if row is None:
        return ""
    if "reason" in row:
        return "not run"
    spread = (row["high"] - row["low"]) / 2
    return f"{row['map']:.3f} ± {spread:.3f}, {100 * row['top1']:.1f} % ({row['taken']:.1f})"


def remarks(rows: list[Row]) -> list[str]:
    """Why rows are missing, what the fusions matched, and the load that other programs made."""
    lines = [f"{row['peer']} on {row['competition']}: not run: {row['reason']}." for row in rows if "reason" in row]
    for row in rows:
        facts = row.get("facts", {})
        if "sift_shortlist" in facts:
            where = f"{row['peer']}, {row['competition']}, {row['minutes']:g} minutes"
            networks = " and ".join(facts["networks"]) or "no network"
            length = f" on {facts['shortlist']}" if "shortlist" in facts else ""
            left_out = "".join(f"; {reason}" for reason in facts["left_out"])
            lines.append(f"{where}: SIFT on {facts['sift_shortlist']} images a query, {networks}{length}{left_out}.")
    loads = [row["load_before"] for row in rows if "load_before" in row]
    if loads:
        lines.append(f"Load of other programs before the rows: {min(loads):.1f} to {max(loads):.1f}.")
    return ["", *(f"- {line}" for line in dict.fromkeys(lines))] if lines else []


def draw(rows: list[Row], path: Path) -> None:
    """MAP@k and top-1 against minutes, a line for each program, as an SVG that is the same for the same rows."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(row["competition"] for row in rows))
    minutes = sorted({row["minutes"] for row in rows})
    shown = [*minutes, *(row["taken"] for row in rows)]
    with mpl.rc_context({"svg.hashsalt": "peers"}):
        figure = Figure(figsize=(_SIZE[0], _SIZE[1] * len(names)), layout="constrained")
        places = figure.subplots(len(names), 2, squeeze=False)
        for some, name in zip(places, names, strict=True):
            own = [row for row in rows if row["competition"] == name]
            for axes, value, title in zip(some, ("map", "top1"), (f"MAP@{own[0]['k']}", "top-1"), strict=True):
                draw_lines(axes, own, value)
                axes.set_title(f"{name}: {title}", fontsize=9)
                axes.set_xscale("log")
                axes.set_xticks(minutes, [f"{value:g}" for value in minutes])
                axes.minorticks_off()
                axes.set_xlim(min(shown) / 1.2, max(shown) * 1.2)
                axes.set_ylim(0, 1)
                axes.grid(color="#e6ecef")
                axes.spines[["top", "right"]].set_visible(False)
        for axes in places[-1]:
            axes.set_xlabel("minutes taken by the clock")
        lines = {line.get_label(): line for axes in places[:, 0] for line in axes.get_lines()}
        figure.legend(handles=list(lines.values()), loc="outside lower center", ncols=2, frameon=False, fontsize=8)
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as temporary:
            figure.savefig(temporary, format="svg", metadata={"Date": None})


def draw_lines(axes: Any, rows: list[Row], value: str) -> None:
    """A line for each program that has rows."""
    for (peer, title), color in zip(TITLES.items(), _COLORS, strict=True):
        own = sorted((row["taken"], row[value]) for row in rows if row["peer"] == peer)
        thick = 2.4 if peer == WHALEID else 1.4
        if own:
            axes.plot(*zip(*own, strict=True), "o-", ms=4, lw=thick, color=color, label=title.strip("*"))
