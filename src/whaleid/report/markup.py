"""HTML from values: whatever is not HTML already is escaped, so that no label can break a page."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

STYLE = """
:root { color-scheme: light dark; --ink: #1c2730; --paper: #fff; --quiet: #5c6b76; --link: #0b5e7a; --soft: #eef4f6;
  --line: #dfe6ea; --note: #fdf3dc; --frame: #b9c5cc; --right: #2a9d4a; --wrong: #d1372c; --bar: #1f77a4; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #dfe7ec; --paper: #12181d; --quiet: #9db0bc; --link: #6cc3e6; --soft: #1e2830; --line: #303c45;
    --note: #3a2f12; --frame: #4a5862; --right: #3fb865; --wrong: #e8594e; --bar: #4ba3d3; }
}
body { margin: 0 auto; padding: 1.5rem 1.25rem 4rem; max-width: 62rem; color: var(--ink); background: var(--paper);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
h1 { margin: 0; font-size: 1.6rem; } h2 { margin: 2.6rem 0 .6rem; font-size: 1.2rem; } h3 { font-size: 1rem; }
p { max-width: 46rem; } a { color: var(--link); } nav a { display: inline-block; margin-right: .9rem; }
.quiet { color: var(--quiet); }
.notice { padding: .6rem .9rem; background: var(--note); border-left: 4px solid #d99a00; }
.facts { display: flex; flex-wrap: wrap; gap: .75rem; margin: 1.1rem 0; }
.facts div { padding: .5rem .9rem; background: var(--soft); border-radius: 6px; }
.facts b { display: block; font-size: 1.25rem; font-variant-numeric: tabular-nums; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .28rem .7rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th { color: var(--quiet); font-weight: 600; white-space: normal; vertical-align: bottom; }
.first th:first-child, .first td:first-child { min-width: 8rem; text-align: left; }
tr.strong td { font-weight: 600; background: var(--soft); }
.bar { display: inline-block; width: 8rem; height: .7rem; margin-left: .6rem; background: var(--line); }
.bar i { display: block; height: 100%; background: var(--bar); }
img { max-width: 100%; height: auto; } section > img { display: block; margin: .8rem 0; border-radius: 4px; }
.sheet { display: flex; flex-wrap: wrap; gap: .6rem; padding: .7rem 0; border-bottom: 1px solid var(--line); }
figure { margin: 0; width: 14rem; font-size: .8rem; line-height: 1.35; overflow-wrap: anywhere; }
figure img, .none { box-sizing: border-box; display: block; width: 100%; border: 4px solid var(--frame); }
.none { padding: 1.6rem 0; text-align: center; color: var(--quiet); background: var(--soft); }
figure.right img, figure.right .none { border-color: var(--right); }
figure.wrong img, figure.wrong .none { border-color: var(--wrong); }
figure.pair { width: auto; margin: .9rem 0; } figure.pair img { width: auto; }
.path { align-items: center; padding-bottom: 0; border: 0; } .path figure { width: 10.5rem; }
.step { font-variant-numeric: tabular-nums; }
pre { overflow-x: auto; padding: .8rem; background: var(--soft); font-size: .8rem; } summary { cursor: pointer; }
@media (max-width: 40rem) { .first td:first-child { white-space: normal; } .bar { width: 4rem; } }
"""


class Markup(str):
    """Text that is HTML already."""


def text(value: object) -> Markup:
    """A value as HTML: Markup as it is, None as nothing, anything else escaped."""
    if isinstance(value, Markup):
        return value
    return Markup("" if value is None else escape(str(value)))


def tag(name: str, *content: object, **attributes: object) -> Markup:
    """One element with its content; attribute `class_` stands for class."""
    given = "".join(f' {key.rstrip("_")}="{escape(str(value))}"' for key, value in attributes.items())
    return Markup(f"<{name}{given}>{''.join(text(part) for part in content)}</{name}>")


def join(parts: Iterable[object]) -> Markup:
    return Markup("\n".join(text(part) for part in parts))


def table(header: list[str], rows: list[list[object]], strong: int | None = None) -> Markup:
    """A table, its first column on the left; strong: the row that is set off."""
    lines = [tag("tr", *(tag("th", name, scope="col") for name in header))]
    for number, row in enumerate(rows):
        cells = [tag("td", value) for value in row]
        lines.append(tag("tr", *cells, class_="strong") if number == strong else tag("tr", *cells))
    return tag("div", tag("table", join(lines), class_="first"), class_="wide")


def picture(name: str, describes: str) -> Markup:
    """An image file beside the page, with the words for those who cannot see it."""
    return Markup(f'<img src="{escape(name)}" alt="{escape(describes)}" loading="lazy">')


def bar(share: float) -> Markup:
    """A horizontal bar filled from the left. share: in [0, 1]."""
    filled = tag("i", style=f"width: {100 * min(max(share, 0.0), 1.0):.1f}%")
    return tag("span", filled, class_="bar")


def section(title: str, anchor: str, *content: object) -> Markup:
    return tag("section", tag("h2", title), join(content), id=anchor)


def document(title: str, *content: object) -> Markup:
    """A whole page."""
    head = join([Markup('<meta charset="utf-8">'), tag("title", title), tag("style", Markup(STYLE))])
    width = Markup('<meta name="viewport" content="width=device-width, initial-scale=1">')
    return Markup(
        f'<!doctype html>\n<html lang="en"><head>\n{head}\n{width}\n</head>\n<body>\n{join(content)}\n</body></html>\n'
    )
