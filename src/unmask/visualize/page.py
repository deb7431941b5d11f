"""The pieces of a self-contained HTML page: style, tables, tiles, pictures. Nothing in it comes from a network."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from unmask.visualize.curves import SERIES

DARK_SERIES = ("#7db4f0", "#f0a36b", "#6fce9b", "#c3a2ff", "#f597aa", "#b3bcc8")  # contrast on the dark card above 7 each
MARKS = {"good": ("✓", "good"), "bad": ("!", "attention"), "open": ("?", "open question"), "note": ("i", "note")}

STYLE = """
:root { color-scheme: light dark; --sans: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
  --mono: ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace;
  --page: #f3f5f7; --card: #ffffff; --ink: #181c22; --quiet: #525a65; --rule: #d5dae0; --code: #f3f5f7;
  --good: #176b40; --bad: #a61b3c; --open: #80500a; --note: #2a5a92; LIGHT }
@media (prefers-color-scheme: dark) { :root { --page: #101317; --card: #191d23; --ink: #e9ecf0; --quiet: #a9b2bd; --rule: #39414b;
  --code: #101317; --good: #6fce9b; --bad: #f597aa; --open: #eab765; --note: #7db4f0; NIGHT } }
* { box-sizing: border-box }
body { margin: 0; background: var(--page); color: var(--ink); font: 16px/1.55 var(--sans) }
main { max-width: 1120px; margin: 0 auto; padding: 36px 20px 64px }
header { display: flex; gap: 18px; align-items: center; margin-bottom: 24px }
header svg { flex: none; width: 52px; height: 52px }
h1 { font-size: 28px; line-height: 1.2; margin: 0; overflow-wrap: anywhere }
h2 { font-size: 19px; margin: 0 0 14px } h3 { font-size: 16px; margin: 22px 0 8px }
.under { color: var(--quiet); margin: 4px 0 0; overflow-wrap: anywhere }
section { background: var(--card); border: 1px solid var(--rule); border-radius: 12px; padding: 22px 24px; margin: 0 0 18px }
.state { display: inline-block; border: 1px solid currentColor; border-radius: 99px; padding: 0 10px; font-size: 14px; vertical-align: 4px; margin-left: 8px; font-weight: 600 }
.good { color: var(--good) } .bad { color: var(--bad) } .open { color: var(--open) } .note { color: var(--note) }
ul.findings { list-style: none; margin: 0; padding: 0 }
ul.findings li { display: grid; grid-template-columns: 26px 1fr; gap: 10px; padding: 7px 0 } ul.findings li + li { border-top: 1px solid var(--rule) }
ul.findings b { width: 24px; height: 24px; line-height: 22px; border: 1.5px solid currentColor; border-radius: 50%; text-align: center; font-size: 14px }
ul.findings li:first-child span { font-size: 17px; font-weight: 600 }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 14px; margin: 0 0 18px }
.tile { background: var(--card); border: 1px solid var(--rule); border-radius: 12px; padding: 12px 16px }
.tile b { display: block; font-size: 25px; line-height: 1.25; font-variant-numeric: tabular-nums } .tile span { color: var(--quiet); font-size: 14px; display: block }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 420px), 1fr)); gap: 18px 28px } .charts svg { width: 100%; height: auto; display: block }
.scroll { overflow-x: auto } table { border-collapse: collapse; width: 100%; font-size: 15px; font-variant-numeric: tabular-nums }
th { text-align: left; color: var(--quiet); font-weight: 600; font-size: 14px } th, td { padding: 6px 14px 6px 0; border-bottom: 1px solid var(--rule); vertical-align: top }
tr:last-child td { border-bottom: 0 } td code, p code { font-size: .93em } code, pre { font-family: var(--mono) }
.pairs { display: grid; grid-template-columns: repeat(auto-fill, minmax(230px, 1fr)); gap: 10px 24px; margin: 0 } .pairs dt { color: var(--quiet); font-size: 14px }
.pairs dd { margin: 0; font-family: var(--mono); font-size: 14px; overflow-wrap: anywhere }
pre { background: var(--code); border: 1px solid var(--rule); border-radius: 8px; padding: 10px 14px; overflow-x: auto; font-size: 14px; line-height: 1.5; margin: 4px 0 12px }
figure { margin: 0 0 16px } figcaption { color: var(--quiet); font-size: 14px; margin-top: 6px } img { max-width: 100%; height: auto; border-radius: 8px; background: #fff; display: block; border: 1px solid var(--rule) }
details summary { cursor: pointer; color: var(--note); padding: 6px 0 } .chip { display: inline-block; width: 13px; height: 13px; border-radius: 3px; margin-right: 7px; vertical-align: -1px }
footer { color: var(--quiet); font-size: 14px; padding: 6px 4px }
@media print { body { background: #fff } section, .tile { break-inside: avoid } }
""".replace("LIGHT", " ".join(f"--series-{i + 1}: {colour};" for i, colour in enumerate(SERIES))).replace(
    "NIGHT", " ".join(f"--series-{i + 1}: {colour};" for i, colour in enumerate(DARK_SERIES))
)


def sign() -> str:
    """The small picture beside the title: a grid of patches of which three quarters are hidden."""
    seen = {(0, 2): 1, (1, 0): 2, (2, 3): 3, (3, 1): 5}
    squares = []
    for row in range(4):
        for at in range(4):
            fill = f"var(--series-{seen[row, at]})" if (row, at) in seen else "var(--rule)"
            squares.append(f'<rect x="{at * 13}" y="{row * 13}" width="11" height="11" rx="2" style="fill:{fill}"/>')
    return f'<svg viewBox="0 0 50 50" aria-hidden="true">{"".join(squares)}</svg>'


def page(title: str, heading: str, under: str, body: Iterable[str], foot: str) -> str:
    """The whole document; `heading` and the parts of `body` are HTML, the other arguments plain text."""
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>\n<body><main>\n<header>{sign()}<div><h1>{heading}</h1>"
        f'<p class="under">{escape(under)}</p></div></header>\n'
        + "\n".join(part for part in body if part)
        + f"\n<footer>{escape(foot)}</footer>\n</main></body></html>\n"
    )


def section(title: str, *parts: str) -> str:
    """A card with a heading; one without content is left out."""
    inside = "".join(parts)
    return f"<section><h2>{escape(title)}</h2>{inside}</section>" if inside else ""


def findings(items: Iterable[tuple[str, str]]) -> str:
    """Marked sentences: (mark, text)."""
    rows = []
    for mark, text in items:
        glyph, said = MARKS[mark]
        rows.append(f'<li><b class="{mark}" role="img" aria-label="{said}">{glyph}</b><span>{escape(text)}</span></li>')
    return f'<ul class="findings">{"".join(rows)}</ul>' if rows else ""


def tiles(items: Iterable[tuple[str, str]]) -> str:
    """Few figures, large: (figure, what it is)."""
    inside = "".join(f'<div class="tile"><b>{escape(figure)}</b><span>{escape(said)}</span></div>' for figure, said in items)
    return f'<div class="tiles">{inside}</div>' if inside else ""


def pairs(items: Iterable[tuple[str, str]]) -> str:
    """Settings and their values."""
    inside = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in items)
    return f'<dl class="pairs">{inside}</dl>' if inside else ""


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; the cells are HTML already, the head is plain text."""
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    top = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in head)
    return f'<div class="scroll"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>' if body else ""


def picture(path: Path, alt: str, caption: str) -> str:
    """A PNG file inside the page; one that cannot be read is left out."""
    try:
        data = path.read_bytes()
    except OSError:
        return ""
    if not data.startswith(b"\x89PNG"):
        return ""
    code = base64.b64encode(data).decode()
    return f'<figure><img src="data:image/png;base64,{code}" alt="{escape(alt, quote=True)}"><figcaption>{escape(caption)}</figcaption></figure>'


def commands(items: Iterable[tuple[str, str]]) -> str:
    """Commands to copy: (what it does, the command)."""
    return "".join(f"<p>{escape(said)}</p><pre><code>{escape(command)}</code></pre>" for said, command in items)


def whisker(value: float, low: float, high: float, left: float, right: float) -> str:
    """A value with its interval on a line from `left` to `right`."""
    place = [round(4 + 152 * (number - left) / max(right - left, 1e-9), 1) for number in (low, value, high)]
    return (
        f'<svg width="160" height="18" viewBox="0 0 160 18" role="img" aria-label="{value:.1f}, from {low:.1f} to {high:.1f}">'
        f'<path d="M4 9H156" style="stroke:var(--rule);stroke-width:1"/><path d="M{place[0]} 9H{place[2]}" style="stroke:var(--series-1);stroke-width:4;opacity:.45"/>'
        f'<circle cx="{place[1]}" cy="9" r="4.5" style="fill:var(--series-1)"/></svg>'
    )


def chip(number: int) -> str:
    """The colour of the `number`-th run of a comparison."""
    return f'<span class="chip" style="background:var(--series-{number % len(SERIES) + 1})"></span>'
