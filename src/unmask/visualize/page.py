"""The pieces of a self-contained HTML page: style, tables, tiles, pictures. Nothing in it comes from a network, and it needs no script."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Iterable, Sequence
from html import escape

from PIL import Image

from unmask.visualize.curves import DASHES, SERIES, SHAPES, letter

DARK_SERIES = ("#7db4f0", "#f0a36b", "#6fce9b", "#c3a2ff", "#f597aa", "#b3bcc8")  # contrast on the dark card above 7 each
MARKS = {"good": ("✓", "good"), "bad": ("!", "attention"), "open": ("?", "open question"), "note": ("i", "note")}
PHOTOGRAPH = 160  # pixels a side from which a picture is kept as JPEG: PNG would take ten times the bytes

STYLE = """
:root { color-scheme: light dark; --sans: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
  --mono: ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace;
  --page: #f3f5f7; --card: #ffffff; --ink: #181c22; --quiet: #525a65; --rule: #d5dae0; --code: #f3f5f7;
  --good: #176b40; --bad: #a61b3c; --open: #80500a; --note: #2a5a92; LIGHT }
@media (prefers-color-scheme: dark) { :root { --page: #101317; --card: #191d23; --ink: #e9ecf0; --quiet: #a9b2bd; --rule: #39414b;
  --code: #101317; --good: #6fce9b; --bad: #f597aa; --open: #eab765; --note: #7db4f0; NIGHT } }
* { box-sizing: border-box }
body { margin: 0; background: var(--page); color: var(--ink); font: 16px/1.55 var(--sans); overflow-wrap: break-word; -webkit-text-size-adjust: 100% }
main { max-width: 1160px; margin: 0 auto; padding: 32px 20px 56px }
header { display: flex; gap: 18px; align-items: center; margin-bottom: 18px }
header svg { flex: none; width: 52px; height: 52px }
h1 { font-size: 28px; line-height: 1.2; margin: 0; overflow-wrap: anywhere }
h2 { font-size: 19px; line-height: 1.3; margin: 0 0 14px } h3 { font-size: 16px; line-height: 1.4; margin: 22px 0 8px }
h2 + h3 { margin-top: 0 } p { margin: 0 0 10px }
.under { color: var(--quiet); margin: 4px 0 10px; overflow-wrap: anywhere } header .under { margin-bottom: 0 }
ul.bare { list-style: none; margin: 0 0 10px; padding: 0; overflow-wrap: anywhere } ul.bare li { padding: 5px 0 }
a, summary { color: var(--note) } :focus-visible { outline: 3px solid var(--note); outline-offset: 2px; border-radius: 4px }
nav { display: flex; flex-wrap: wrap; gap: 2px 18px; margin: 0 0 18px; font-size: 15px } nav a { padding: 4px 0 }
section { background: var(--card); border: 1px solid var(--rule); border-radius: 12px; padding: 22px 24px; margin: 0 0 18px }
.state { display: inline-block; border: 1px solid currentColor; border-radius: 99px; padding: 0 10px; font-size: 14px; line-height: 1.6; vertical-align: 4px; margin-left: 8px; font-weight: 600 }
h3 .state { vertical-align: 0 }
.good { color: var(--good); fill: var(--good) } .bad { color: var(--bad); fill: var(--bad) } .open { color: var(--open) } .note { color: var(--note) }
ul.findings { list-style: none; margin: 0; padding: 0 }
ul.findings li { display: grid; grid-template-columns: 26px minmax(0, 1fr); gap: 10px; padding: 7px 0 } ul.findings li + li { border-top: 1px solid var(--rule) }
ul.findings b { width: 24px; height: 24px; line-height: 22px; border: 1.5px solid currentColor; border-radius: 50%; text-align: center; font-size: 14px }
.first li:first-child span { font-size: 17px; font-weight: 600 }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(158px, 1fr)); gap: 12px; margin: 0 0 18px }
.tile { background: var(--card); border: 1px solid var(--rule); border-radius: 12px; padding: 12px 16px } .tile dd, .tile dt { margin: 0 }
.tile dt { color: var(--quiet); font-size: 14px } .tile dd b { display: block; font-size: 24px; line-height: 1.3; font-variant-numeric: tabular-nums }
.tile dd span { color: var(--quiet); font-size: 14px; line-height: 1.35; display: block }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 310px), 1fr)); gap: 22px 26px } .charts h3 { margin: 0; font-size: 15px }
.charts figure { margin: 0 } .charts figure p { color: var(--quiet); font-size: 14px; line-height: 1.35; margin: 0 0 4px }
.chart { width: 100%; height: auto; display: block; overflow: visible } .chart text { font: 12px var(--sans); fill: var(--quiet) }
.chart .grid { stroke: var(--rule); stroke-width: 1; fill: none } .chart .line { stroke-width: 2; fill: none; stroke-linejoin: round }
.chart .level { stroke-width: 1.2; fill: none; stroke-dasharray: 5 3 } .chart .name { font-weight: 700; font-size: 13px } .chart .bad { fill: var(--bad) }
.chart .halo { fill: var(--ink); paint-order: stroke; stroke: var(--card); stroke-width: 4px; stroke-linejoin: round }
.scroll { overflow-x: auto; margin: 0 0 10px } table { border-collapse: collapse; width: 100%; font-size: 15px; font-variant-numeric: tabular-nums }
caption { text-align: left; color: var(--quiet); font-size: 14px; padding: 0 0 6px } td > svg { display: block }
th { text-align: left; font-weight: 600 } thead th { color: var(--quiet); font-size: 14px } tbody th { font-weight: 400 } th, td { padding: 6px 14px 6px 0; border-bottom: 1px solid var(--rule); vertical-align: top }
tr:last-child > * { border-bottom: 0 } td code, p code, th code, li code { font-size: .93em } code, pre { font-family: var(--mono) } td { overflow-wrap: anywhere; min-width: 7em } .line td, .line th { white-space: nowrap; min-width: 0 }
.pairs { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 230px), 1fr)); gap: 10px 24px; margin: 0 } .pairs dt { color: var(--quiet); font-size: 14px }
.pairs dd { margin: 0; font-family: var(--mono); font-size: 14px; overflow-wrap: anywhere } .pairs .other { color: var(--ink); font-family: var(--sans) }
pre { background: var(--code); border: 1px solid var(--rule); border-radius: 8px; padding: 10px 14px; margin: 4px 0 12px; font-size: 14px; line-height: 1.5; white-space: pre-wrap; overflow-wrap: anywhere }
figure { margin: 0 0 16px } figcaption { color: var(--quiet); font-size: 14px; line-height: 1.4; margin-top: 6px; overflow-wrap: anywhere }
img { max-width: 100%; height: auto; display: block; background: var(--rule) } img.small { image-rendering: pixelated } .whole { border: 1px solid var(--rule); border-radius: 8px; background: #fff }
.rows { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 480px), 1fr)); gap: 14px 28px } .rows figure { margin: 0 }
.panels { display: grid; gap: 4px } .panels span { color: var(--quiet); font-size: 13px; line-height: 1.25; align-self: end } .panels img { width: 100% }
.seen td, .seen th { padding: 4px 8px 8px 0; border: 0; min-width: 72px } .seen img { width: 100%; max-width: 148px; min-width: 64px } .both { display: flex; flex-wrap: wrap; gap: 4px } .both img { flex: 1 1 64px } .seen td { font-size: 13px; color: var(--quiet) } .seen tbody th { font-size: 13px; line-height: 1.35; width: 17%; min-width: 84px; overflow-wrap: anywhere; color: var(--quiet) }
details { margin: 4px 0 } details summary { cursor: pointer; padding: 6px 0 } .key { margin-right: 22px; display: inline-block; max-width: 100%; overflow-wrap: break-word } table .key { margin-right: 0 } .key svg { vertical-align: -3px; margin-right: 6px }
footer { color: var(--quiet); font-size: 14px; padding: 6px 4px }
@media (max-width: 560px) { main { padding: 20px 10px 40px } section { padding: 18px 14px; border-radius: 10px } h1 { font-size: 23px } header svg { width: 40px; height: 40px } }
@media print { body { background: #fff } section, .tile, figure { break-inside: avoid } nav { display: none } }
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
    """The whole document, with links to its sections; `heading` and the parts of `body` are HTML, the other arguments plain text."""
    parts = [part for part in body if part]
    places = [found.groups() for part in parts for found in re.finditer(r'<section id="([^"]+)"><h2>(.*?)</h2>', part)]
    links = "".join(f'<a href="#{place}">{said}</a>' for place, said in places)
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<title>{escape(title)}</title><style>{STYLE}</style></head>\n<body><main>\n<header>{sign()}<div><h1>{heading}</h1>'
        f'<p class="under">{escape(under)}</p></div></header>\n<nav aria-label="On this page">{links}</nav>\n'
        + "\n".join(parts)
        + f"\n<footer>{escape(foot)}</footer>\n</main></body></html>\n"
    )


def section(title: str, *parts: str) -> str:
    """A card with a heading; one without content is left out."""
    inside, place = "".join(parts), re.sub(r"\W+", "-", title.lower()).strip("-")
    return f'<section id="{place}"><h2>{escape(title)}</h2>{inside}</section>' if inside else ""


def findings(items: Iterable[tuple[str, str]], first: bool = False) -> str:
    """Marked sentences: (mark, text); the `first` one larger."""
    rows = []
    for mark, text in items:
        glyph, said = MARKS[mark]
        rows.append(f'<li><b class="{mark}" role="img" aria-label="{said}">{glyph}</b><span>{escape(text)}</span></li>')
    return f'<ul class="findings{" first" if first else ""}">{"".join(rows)}</ul>' if rows else ""


def tiles(items: Iterable[tuple[str, str, str]]) -> str:
    """Few figures, large: (what it is, figure, what stands beside it)."""
    inside = "".join(
        f'<div class="tile"><dt>{escape(said)}</dt><dd><b>{escape(figure)}</b>{f"<span>{escape(beside)}</span>" if beside else ""}</dd></div>'
        for said, figure, beside in items
    )
    return f'<dl class="tiles">{inside}</dl>' if inside else ""


def pairs(items: Iterable[tuple[str, str, str]]) -> str:
    """Settings: (name, value, what is to be said of it; may be empty)."""
    inside = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd>{f'<dd class=other>{escape(more)}</dd>' if more else ''}</div>" for name, value, more in items
    )
    return f'<dl class="pairs">{inside}</dl>' if inside else ""


def table(head: Sequence[str], rows: Iterable[Sequence[str]], says: str, kind: str = "", caption: bool = True) -> str:
    """A table; cells are HTML already, the first of a row heads it; `head` is HTML too, `says` the caption in plain text.

    A table wider than the screen scrolls inside itself, by keyboard too.
    """
    body = "".join(f'<tr><th scope="row">{row[0]}</th>' + "".join(f"<td>{cell}</td>" for cell in row[1:]) + "</tr>" for row in rows)
    top = "".join(f'<th scope="col">{cell}</th>' for cell in head)
    told, kind = escape(says, quote=True), f' class="{kind}"' if kind else ""
    over = f"<caption>{told}</caption>" if caption else ""
    inside = f"<table{kind}>{over}<thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"
    return f'<div class="scroll" role="region" aria-label="{told}" tabindex="0">{inside}</div>' if body else ""


def folded(summary: str, inside: str) -> str:
    """What opens on a click."""
    return f"<details><summary>{escape(summary)}</summary>{inside}</details>" if inside else ""


def image(picture: Image.Image, alt: str, kind: str = "") -> str:
    """A picture inside the page: small ones pixel by pixel, larger ones as JPEG."""
    small, file = min(picture.size) < PHOTOGRAPH, io.BytesIO()
    if small:
        picture.save(file, "PNG", optimize=True)
    else:
        picture.convert("RGB").save(file, "JPEG", quality=90, subsampling=0)
    width, height = picture.size
    kinds = " ".join(word for word in (kind, "small" if small else "") if word)
    code = base64.b64encode(file.getvalue()).decode()
    size = f'width="{width}" height="{height}"' + (f' class="{kinds}"' if kinds else "")
    return f'<img src="data:image/{"png" if small else "jpeg"};base64,{code}" alt="{escape(alt, quote=True)}" {size} loading="lazy">'


def figure(inside: str, caption: str) -> str:
    """Pictures with their caption, which is plain text."""
    return f"<figure>{inside}<figcaption>{escape(caption)}</figcaption></figure>"


def commands(items: Iterable[tuple[str, str]]) -> str:
    """Commands to copy: (what it does, the command)."""
    return "".join((f"<p>{escape(said)}</p>" if said else "") + f"<pre><code>{escape(command)}</code></pre>" for said, command in items)


def whisker(value: float, low: float | None, high: float | None, left: float, right: float, place: int = 0, faint: bool = False) -> str:
    """A value with its interval on a line from `left` to `right`, in the colour and marker of a run; `faint`: hollow."""
    at = [round(8 + 144 * (number - left) / max(right - left, 1e-9), 1) for number in (low if low is not None else value, value, high if high is not None else value)]
    colour = f"var(--series-{place % len(SERIES) + 1})"
    fill = f"fill:var(--card);stroke:{colour};stroke-width:1.5" if faint else f"fill:{colour}"
    return (
        '<svg width="160" height="20" viewBox="0 0 160 20" aria-hidden="true"><path d="M4 10H156" style="stroke:var(--rule);stroke-width:1"/>'
        f'<path d="M{at[0]} 10H{at[2]}M{at[0]} 6V14M{at[2]} 6V14" style="stroke:{colour};stroke-width:1.6;fill:none"/>'
        f'<path d="{SHAPES[place % len(SHAPES)]}" transform="translate({at[1]} 10)" style="{fill}"/></svg>'
    )


def key(place: int, name: str) -> str:
    """How a run is told on this page: its line, its marker and its letter, then its name."""
    colour, dash = f"var(--series-{place % len(SERIES) + 1})", DASHES[place % len(DASHES)]
    return (
        f'<span class="key"><svg width="36" height="14" viewBox="0 0 36 14" aria-hidden="true"><path d="M1 7H35" style="stroke:{colour};stroke-width:2;stroke-dasharray:{dash or "none"}"/>'
        f'<path d="{SHAPES[place % len(SHAPES)]}" transform="translate(18 7)" style="fill:{colour}"/></svg><b style="color:{colour}">{letter(place)}</b> {escape(name)}</span>'
    )
