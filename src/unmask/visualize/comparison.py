"""compare.html: encoders side by side, what their differences are worth, and the pictures on which they disagree."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from unmask.data.loader import Pictures
from unmask.evaluation.comparison import Comparison
from unmask.evaluation.ranking import SAID, UNITS, listed
from unmask.run.folder import write_whole
from unmask.visualize import page
from unmask.visualize.neighbours import thumbnails

SHOWN = 10  # pictures of a side on which two encoders disagree
LETTERS = "AB"  # the two encoders under a picture, where both answers are shown
MANY = 40  # classes above which a table by class says nothing any more
PROTOCOL = {"knn": "kNN", "linear": "linear probe", "finetune": "fine-tuned"}


def write(found: Comparison, told: dict[str, Any], judging: Pictures, out: Path) -> Path:
    """Write the page about a comparison; `told` is what it says in plain values, `judging` the pictures as the first encoder sees them."""
    names = [row["name"] for row in told["table"] if row["kind"] == "encoder"]
    body = [
        page.section("In words", page.findings([(_mark(told), told["verdict"]), *_also(told)], first=True)),
        page.section("The table", _table(told)),
        page.section("Differences", _differences(told)),
        page.section("Where they differ", _disputes(found, told, judging)),
        page.section("By class", _by_class(found, told)),
        page.section("How this was measured", page.pairs((name, value, "") for name, value in _settings(told))),
        page.section("What to try next", page.commands(_next(told, names))),
    ]
    under = f"{told.get('data', '')} · {told['n_train']:,} pictures teach, {told['n_val']:,} judge · {told['img_size'][0]} x {told['img_size'][1]} px"
    foot = "Written by unmask. This page is one file and loads nothing from a network."
    write_whole(out, page.page(f"{listed(names)}: unmask compare", escape(listed(names)), under, body, foot))
    return out


def _mark(told: dict[str, Any]) -> str:
    """Whether the sentence is good news, bad news or an open question."""
    gaps = [gap for gap in told["differences"] if gap["protocol"] == told["deciding"]]
    encoders = [row["name"] for row in told["table"] if row["kind"] == "encoder"]
    beaten = [gap for gap in gaps if gap["second"] not in encoders]
    if beaten and not any(gap["told_apart"] and gap["difference"] > 0 for gap in beaten):
        return "bad"
    rivals = [gap for gap in gaps if gap["second"] in encoders]
    return "good" if not rivals or rivals[0]["told_apart"] else "open"  # the first pair: the two best


def _also(told: dict[str, Any]) -> list[tuple[str, str]]:
    said = [
        ("bad" if "too good" in note else "note", note[0].upper() + note[1:] + ".")
        for note in told["notes"]
    ]
    many = len({(gap["first"], gap["second"]) for gap in told["differences"] if gap["protocol"] == told["deciding"]})
    wide = f" Of {many} differences on this page those of one kind are widened so that all hold together 95 times in 100." if many > 1 else ""
    sure = f"The intervals say how far other judging pictures of the same sort could move a figure.{wide} Another seed of the pre-training moves it too: that needs another run."
    return [*said, ("note", sure)]


def _number(told: dict[str, Any], value: float | None) -> str:
    if value is None:
        return "not defined"
    return f"{value:.1f} %" if told["metric"] == "top1" else f"{value:.3f}"


def _protocols(told: dict[str, Any]) -> list[str]:
    return list(dict.fromkeys(gap["protocol"] for gap in told["differences"]))


def _table(told: dict[str, Any]) -> str:
    """A line an entrant, the best first, the floors below with hollow marks; every figure with its interval on one scale."""
    metric, protocols, deciding = told["metric"], _protocols(told), told["deciding"]

    def place(row: dict[str, Any]) -> tuple[bool, float]:
        value = row.get(deciding, {}).get(metric)
        return row["kind"] != "encoder", -(value if value is not None else -math.inf)

    rows = sorted(told["table"], key=place)
    bounds = [bound for row in rows for protocol in protocols for bound in row.get(protocol, {}).get("interval") or ()]
    step = 10 if metric == "top1" else 0.1
    left, right = max(step * math.floor(min(bounds, default=0) / step), -1.0), step * math.ceil(max(bounds, default=1) / step)
    cells = []
    for at, row in enumerate(rows):
        name, encoder = escape(row["name"]), row["kind"] == "encoder"
        line = [name if encoder else f'<span style="color:var(--quiet);font-weight:400">{name}</span>', _whole(escape(row["model"] or ""))]
        for protocol in protocols:
            made = row.get(protocol)
            if made is None:
                line += ["", ""]
            elif made[metric] is None or not made["interval"]:
                line += [_number(told, made[metric]), ""]
            else:
                value, low, high = (max(number, left) for number in (made[metric], *made["interval"]))
                line += [_figure(told, made), page.whisker(value, low, high, left, right, at if encoder else len(told["table"]), not encoder)]
        cells.append(line)
    scale = f"{left:g} to {right:g} %" if metric == "top1" else f"{left:.1f} to {right:.1f}"
    head = ["", "network", *(word for protocol in protocols for word in (PROTOCOL.get(protocol, protocol), scale))]
    what = {"top1": "Right answers", "auroc": "Area under the ROC curve, the mean of all tags", "r2": "R², the mean of all numbers"}[metric]
    says = f"{what}, with its 95 % interval. The floors below the encoders are what random weights and plain colour reach."
    return page.table(head, cells, says)


def _figure(told: dict[str, Any], made: dict[str, Any]) -> str:
    (low, high), digits = made["interval"], 1 if told["metric"] == "top1" else 3
    under = f"<span style='color:var(--quiet);font-size:14px'>{low:.{digits}f} to {high:.{digits}f}</span>"
    return _whole(f"{_number(told, made[told['metric']])}<br>{under}")


def _differences(told: dict[str, Any]) -> str:
    """A line a pair: the difference with its interval around 0, and on how many pictures only one is right."""
    gaps = [gap for gap in told["differences"] if gap["protocol"] == told["deciding"]]
    reach = max((abs(gap["difference"]) + gap["half_width"] for gap in gaps if gap["half_width"] is not None), default=1.0)
    digits, classes = (1, True) if told["metric"] == "top1" else (3, False)
    unit, cells = UNITS[told["metric"]], []
    for gap in gaps:
        half = gap["half_width"]
        words = "cannot be told apart" if not gap["told_apart"] else f"{gap['first' if gap['difference'] > 0 else 'second']} is better"
        line = [
            f"{escape(gap['first'])} − {escape(gap['second'])}",
            _whole(f"{gap['difference']:+.{digits}f} ± {half:.{digits}f}" if half is not None else f"{gap['difference']:+.{digits}f}, no interval"),
            around_zero(gap["difference"], half, reach) if half is not None else "",
            _whole(escape(words)),
        ]
        cells.append(line + ([_whole(f"{gap[which]:,}") for which in ("only_first_right", "only_second_right")] if classes else []))
    head = ["difference", unit, "0 in the middle", "so", *(["only the first is right", "only the second"] if classes else [])]
    note = f"Measured on the same {told['n_val']:,} pictures, {SAID.get(told['deciding'], told['deciding'])}{': only those on which two disagree count' if classes else ''}."
    return page.table(head, cells, note)


def _whole(inside: str) -> str:
    """A cell that is not broken between its words."""
    return f'<span style="display:inline-block;white-space:nowrap">{inside}</span>'


def around_zero(value: float, half: float, reach: float) -> str:
    """A difference with its interval on a line from -reach to reach, and the line of no difference."""
    low, middle, high = (round(80 + 76 * number / max(reach, 1e-9), 1) for number in (value - half, value, value + half))
    colour = "var(--quiet)" if abs(value) <= half else "var(--good)" if value > 0 else "var(--bad)"
    label = f"{value:.3g}, from {value - half:.3g} to {value + half:.3g}"
    return (
        f'<svg width="160" height="18" viewBox="0 0 160 18" role="img" aria-label="{label}"><path d="M4 9H156" style="stroke:var(--rule);stroke-width:1"/>'
        f'<path d="M80 1V17" style="stroke:var(--ink);stroke-width:1.5"/><path d="M{low} 9H{high}" style="stroke:{colour};stroke-width:4;opacity:.45"/>'
        f'<circle cx="{middle}" cy="9" r="4.5" style="fill:{colour}"/></svg>'
    )


def _disputes(found: Comparison, told: dict[str, Any], judging: Pictures) -> str:
    """For the best encoder and each other one: the pictures that only one of them gets right, or gets much nearer."""
    names = found.field().ranked()
    if len(names) < 2:
        return ""
    parts = []
    for place, other in enumerate(names[1:]):
        inside = _dispute(found, told["deciding"], (names[0], other), judging)
        if place == 0:
            parts.append(inside)
        else:
            parts.append(f"<details><summary>{escape(names[0])} and {escape(other)}</summary>{inside}</details>")
    return "".join(parts)


def _dispute(found: Comparison, protocol: str, pair: tuple[str, str], judging: Pictures) -> str:
    one, two = pair
    nearer = found.closeness(protocol, one) - found.closeness(protocol, two)  # (m,)
    if found.task == "classes":
        right = [found.answers[protocol][name].argmax(axis=1) == found.truth for name in pair]
        sides = [np.flatnonzero(right[0] & ~right[1]), np.flatnonzero(right[1] & ~right[0])]
        both, neither = int((right[0] & right[1]).sum()), int((~right[0] & ~right[1]).sum())
        counts = {"both right": both, f"only {one}": len(sides[0]), f"only {two}": len(sides[1]), "both wrong": neither}
        tiles = page.tiles((said, f"{count:,}", "") for said, count in counts.items())
        heads = [f"{one} is right, {two} is wrong", f"{two} is right, {one} is wrong"]
    else:
        order = np.argsort(np.nan_to_num(-nearer), kind="stable")
        sides = [order[nearer[order] > 0], order[::-1][nearer[order[::-1]] < 0]]
        tiles = f"<p>{escape(f'{LETTERS[0]}: {one}, {LETTERS[1]}: {two}')}. Above the answers the truth.</p>"
        heads = [f"{one} is nearer to the truth than {two}", f"{two} is nearer to the truth than {one}"]
    chosen = [sorted(side.tolist(), key=lambda row: -abs(float(nearer[row])))[:SHOWN] for side in sides]
    drawn = thumbnails(judging, [found.ids[row] for side in chosen for row in side])
    parts, beliefs = [tiles], {name: found.belief(protocol, name) for name in pair}
    for head, side in zip(heads, chosen):
        cards = [_card(found, beliefs, row, drawn[found.ids[row]]) for row in side if found.ids[row] in drawn]
        rest = "" if not cards else f'<div style="display:grid;grid-template-columns:repeat(auto-fill,minmax(160px,1fr));gap:16px">{"".join(cards)}</div>'
        parts.append(f"<h3>{escape(head)}</h3>{rest or '<p>On no picture.</p>'}")
    return "".join(parts)


def _card(found: Comparison, beliefs: Mapping[str, np.ndarray], row: int, image: Image.Image) -> str:
    """A picture with the truth and what is answered to it; of classes only the wrong answer, for the other is the truth."""
    truth, answers = found.spoken(row), {name: found.spoken(row, belief) for name, belief in beliefs.items()}
    said = [f"{letter}: {answer}" for letter, answer in zip(LETTERS, answers.values())]
    if found.task == "classes":
        said = [f"taken for {next((answer for answer in answers.values() if answer != truth), truth)}"]
    data = io.BytesIO()
    image.save(data, "JPEG", quality=82)
    code, alt = base64.b64encode(data.getvalue()).decode(), escape(f"{truth}; {'; '.join(f'{name}: {answer}' for name, answer in answers.items())}", quote=True)
    lines = "".join(f"<br>{escape(line)}" for line in said)
    file = escape(found.paths[row].replace("\\", "/").rsplit("/", 1)[-1])
    return (
        f'<figure style="margin:0"><img src="data:image/jpeg;base64,{code}" alt="{alt}" style="width:100%">'
        f'<figcaption style="overflow-wrap:anywhere"><b style="color:var(--ink)">{escape(truth)}</b>{lines}<br>{file}</figcaption></figure>'
    )


def _by_class(found: Comparison, told: dict[str, Any]) -> str:
    """The share of right answers for every class, the best in bold."""
    if found.task != "classes" or not 2 <= len(found.names) <= MANY:
        return ""
    answers, encoders = found.answers[told["deciding"]], found.encoders
    cells = []
    for number, name in enumerate(found.names):
        rows = np.flatnonzero(found.truth == number)
        if not len(rows):
            continue
        shares = [100 * float((answers[encoder][rows].argmax(axis=1) == number).mean()) for encoder in encoders]
        best = max(shares)
        line = [f"<b>{share:.0f} %</b>" if share == best and shares.count(best) == 1 else f"{share:.0f} %" for share in shares]
        cells.append([escape(name), f"{len(rows):,}", *line])
    says = "The share of right answers. A class has few pictures: a difference in one line means little unless many lines agree."
    return page.table(["class", "pictures", *map(escape, encoders)], cells, says)


def _settings(told: dict[str, Any]) -> list[tuple[str, str]]:
    items = [("teach", f"{told['n_train']:,} pictures"), ("judge", f"{told['n_val']:,} pictures"), ("chosen by", str(told["val"]))]
    items += [("input", f"{told['img_size'][0]} x {told['img_size'][1]} px"), ("labels", f"{told['task']}, {told[told['task']]}")]
    items += [("groups", f"{told['groups']:,}")] if told.get("groups") else []
    items += [("deciding protocol", PROTOCOL.get(told["deciding"], told["deciding"])), ("seed", str(told["seed"])), ("seconds", f"{told['seconds']:.0f}")]
    for row in told["table"]:
        made = [(PROTOCOL.get(name, name), row[name]) for name in _protocols(told) if name in row]
        items.append((row["name"], "; ".join(f"{name}: {_how(one)}" for name, one in made)))
    return items


def _how(made: dict[str, Any]) -> str:
    """How a figure came about, shortly."""
    return str(made["run"]) if "run" in made else f"{made.get('pooling')}" + (f", rate {made['lr']:.3g}" if made.get("lr") else "")


def _next(told: dict[str, Any], names: Sequence[str]) -> list[tuple[str, str]]:
    apart = any(gap["told_apart"] for gap in told["differences"] if gap["protocol"] == told["deciding"] and gap["second"] in names)
    items = []
    if len(names) > 1 and not apart:
        items.append(("More judging pictures make the interval narrower; four times as many halve it:", "unmask compare DATA ENCODER ENCODER --val MORE_LABELLED_PICTURES"))
    return [
        *items,
        ("Is anything that judges also among what teaches?", "unmask neighbours ENCODER DATA --val VAL"),
        ("What does an encoder find alike?", "unmask neighbours ENCODER DATA --query PICTURES"),
    ]
