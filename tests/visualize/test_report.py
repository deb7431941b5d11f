"""The report: true sentences, a whole page from half a run, nothing from a network."""

import json
import re
from html.parser import HTMLParser

import pytest
import yaml
from PIL import Image

from unmask.errors import Refused
from unmask.visualize import curves, page, report
from unmask.visualize.verdict import Run, verdict


def run_folder(path, losses=(), status="finished", pictures=(), evaluations=(), quarantine=(), **columns):
    (path / "pictures").mkdir(parents=True)
    config = {
        "format": 1,
        "method": "mae",
        "data": "my photos/train",
        "model": "vit_tiny_patch16_224",
        "img_size": [64, 64],
        "steps": len(losses),
        "lr": 0.001,
    }
    (path / "config.yaml").write_text(yaml.safe_dump(config | columns.pop("config", {})))
    rows = [{"step": i + 1, "loss": loss} | columns for i, loss in enumerate(losses)]
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (path / "status.json").write_text(json.dumps({"status": status, "step": len(losses), "resume": "unmask resume here"}))
    for name, lines in (("evaluations", evaluations), ("quarantine", quarantine)):
        (path / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for step in pictures:
        Image.effect_noise((120, 120), 50).save(path / "pictures" / f"step-{step:07d}.png")
    return path


def falling(count=200, to=0.7):
    return [to + (1.1 - to) * 0.97**i for i in range(count)]


def said(path):
    return [(finding.mark, finding.text) for finding in verdict(Run.read(path))]


class Whole(HTMLParser):
    """Fails on tags that are not closed, and keeps the pictures."""

    VOID = frozenset(("meta", "img", "br", "hr", "path", "circle", "rect", "use"))

    def __init__(self, text):
        super().__init__()
        self.open, self.pictures, self.text = [], [], text
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        if tag == "img":
            self.pictures.append(dict(attributes))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag


def check(path):
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"(src=|url\(|@import |<link[^>]+href=)[\"']?https?:", text)
    assert not re.search(r"<script|<link|@import", text)
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    seen = Whole(text)
    assert all(picture["alt"] and picture["src"].startswith("data:image/png;base64,") for picture in seen.pictures)
    return text, seen


def test_a_finished_run_is_told_whole(tmp_path):
    rows = [
        {"protocol": "knn", "top1": top1, "random": random, "pooling": "mean", "n_train": 900, "n_val": 1000}
        for top1, random in ((40.0, False), (30.0, True))
    ]
    path = run_folder(
        tmp_path / "good",
        falling(),
        pictures=(50, 100, 200),
        evaluations=rows,
        quarantine=[{"path": "<b>bad</b>.jpg", "reason": "truncated"}],
        patch_mean=0.98,
        copy_nearest=1.4,
        lr=0.001,
        images_per_second=90.0,
        data_wait=0.02,
    )
    text, seen = check(report.write([path]))
    assert len(seen.pictures) == 3 and "step 200" in seen.pictures[0]["alt"]
    assert "lower than both baselines" in text and "intervals do not touch" in text
    assert "&lt;b&gt;bad&lt;/b&gt;.jpg" in text and "<b>bad" not in text
    assert "--random" in text and "&#x27;my photos/train&#x27;" in text  # commands are quoted for the shell
    assert text.count("<svg role") >= 4


@pytest.mark.parametrize("missing", ["status.json", "metrics.jsonl", "config.yaml", "evaluations.jsonl", "quarantine.jsonl"])
def test_missing_pieces_are_left_out(tmp_path, missing):
    path = run_folder(tmp_path / "part", falling(30))
    (path / missing).unlink()
    check(report.write([path]))


def test_a_run_that_has_only_begun(tmp_path):
    path = run_folder(tmp_path / "new", status="running")
    (path / "metrics.jsonl").write_text('{"step": 1, "lo')
    (path / "status.json").write_text("{")
    (path / "pictures" / "step-1.png").write_bytes(b"")
    text, _ = check(report.write([path]))
    assert "No step has been written down yet" in text and "unmask resume" in text
    path = run_folder(tmp_path / "one", [1.0], status="interrupted", patch_mean=None)
    text, _ = check(report.write([path]))
    assert "unmask resume here" in text and "cannot be told" in text


def test_several_runs_are_compared(tmp_path):
    first = run_folder(tmp_path / "a", falling(), patch_mean=0.98)
    second = run_folder(tmp_path / "b", falling(100, 0.8), patch_mean=0.98, status="interrupted", config={"lr": 0.0003})
    text, _ = check(report.write([first, second], tmp_path / "out" / "both.html"))
    assert "0.0003" in text and text.count("unmask evaluate knn") >= 2 and "2 runs side by side" in text
    same = run_folder(tmp_path / "other" / "a", falling())
    check(report.write([first, same], tmp_path / "twins.html"))


def test_the_verdict_is_honest_about_the_loss(tmp_path):
    both = {"patch_mean": 0.98, "copy_nearest": 1.4}
    assert said(run_folder(tmp_path / "1", falling(), **both))[0][0] == "good"
    worse = said(run_folder(tmp_path / "2", [1.5] * 100, **both))
    assert worse[0] == ("bad", worse[0][1]) and "not learned" in worse[0][1]
    between = said(run_folder(tmp_path / "3", [1.2] * 100, **both))
    assert between[0][0] == "bad" and "but not lower than filling each hidden patch with its own mean" in between[0][1]
    assert said(run_folder(tmp_path / "4", [0.5] * 100))[0][0] == "open"
    falls = [text for mark, text in said(run_folder(tmp_path / "5", [1 - i / 400 for i in range(200)], **both)) if mark == "note"]
    assert any("longer run" in text for text in falls)
    assert not any("longer run" in text for _, text in said(run_folder(tmp_path / "6", [0.5] * 200, **both)))


def test_the_verdict_is_honest_about_the_features(tmp_path):
    def evaluated(trained, random, trials):
        rows = [{"protocol": "linear", "top1": top1, "random": flag, "n_val": trials} for top1, flag in ((trained, False), (random, True))]
        path = run_folder(tmp_path / f"{trained}-{random}-{trials}", falling(), evaluations=rows)
        return next((mark, text) for mark, text in said(path) if "linear" in text)

    assert evaluated(40, 30, 2000)[0] == "good"
    assert evaluated(40, 38, 100) == (
        "open",
        "evaluate linear: 40.0 % against 38.0 % of the random encoder; the intervals overlap, so a difference is not shown.",
    )
    assert evaluated(20, 40, 2000)[0] == "bad"
    common = {"protocol": "knn", "n_val": 500, "majority": 10.0}
    others = [common | {"top1": 40.0, "random": False}, common | {"top1": 20.0, "random": True, "n_val": 900}]
    assert any("Measure the random encoder" in text for _, text in said(run_folder(tmp_path / "others", falling(), evaluations=others)))
    largest = [common | {"top1": 41.0, "random": False, "majority": 40.0}]
    assert any(mark == "bad" and "largest class" in text for mark, text in said(run_folder(tmp_path / "largest", falling(), evaluations=largest)))
    collapsed = run_folder(tmp_path / "collapsed", falling(), rank=1.2)
    assert any(mark == "bad" and "collaps" in text for mark, text in said(collapsed))
    waiting = run_folder(tmp_path / "waiting", falling(), data_wait=0.5)
    assert any("waited for data 50%" in text for _, text in said(waiting))


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(Refused, match="nowhere"):
        report.write([tmp_path / "nowhere"])
    with pytest.raises(Refused, match="is no run"):
        report.write([tmp_path])
    with pytest.raises(Refused, match="at least one"):
        report.write([])


def test_curves_take_what_is_there(tmp_path):
    rows = [{"step": i, "loss": 1 / (i + 1), "knn": None, "rank": float("nan")} for i in range(1000)]
    assert [chart.key for chart in curves.present({"a": rows})] == ["loss"]
    steps, mean, low, high = curves.thin(range(1000), [float(i == 500) for i in range(1000)], 7)
    assert len(steps) == 143 and max(high) == 1 and max(mean) < 1 and max(low) == 0  # a spike is not lost
    for name in ("c.png", "c.svg"):
        assert curves.save({"a": rows, "b": rows[:40]}, tmp_path / name).stat().st_size > 2000
    curves.save({"empty": []}, tmp_path / "e.png")
    drawn = curves.svg(curves.CHARTS[0], {'<a "b">': rows})
    assert "var(--series-1)" in drawn and "<a " not in drawn and "#" not in re.sub(r'(url\(|href=")#', "", drawn)


def brightness(colour):
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_text_and_curves_can_be_read_in_light_and_dark():
    """WCAG 2.1, contrast ratio of at least 4.5 on every background that carries it."""
    light, dark = page.STYLE.split("@media (prefers-color-scheme: dark)")
    for sheet in (light, dark[: dark.index("}")]):
        colours = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", sheet))
        assert {"page", "card", "ink", "quiet", "good", "bad", "open", "note", "series-1", "series-6"} <= colours.keys()
        for name, colour in colours.items():
            if name in ("page", "card", "code", "rule"):
                continue
            for ground in ("page", "card"):
                low, high = sorted((brightness(colour), brightness(colours[ground])))
                assert (high + 0.05) / (low + 0.05) >= 4.5, (name, ground)
