"""The report: a whole page from half a run, from several, from runs of different kinds."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from html import escape, unescape

import pytest
import torch
from html_pages import check
from PIL import Image
from run_folders import falling, measured, run_folder

from unmask.errors import Refused
from unmask.methods.mae import MAE
from unmask.visualize import report
from unmask.visualize.pictures import Row, save, sheet

HEADER = ["original", "masked (75% hidden)", "prediction", "error"]


def written(*runs, out=None, **more):
    text = report.write(runs, out, **more).read_text(encoding="utf-8")
    return text, check(text)


def drawn(path, step, names=("a/1.png", "b/2.png"), panels=None):
    """A sheet of a run's monitor."""
    panels = panels or [Image.effect_noise((32, 32), 90).convert("RGB") for _ in HEADER]
    rows = [Row(panels, f"{name}   error 0.125, smooth fill 0.130", name=name) for name in names]
    save(sheet(rows, HEADER, f"step {step}", ["Seams are normal."]), path / "pictures" / f"step-{step:07d}.png")
    return path


def section(text, name):
    """The part of a page under one heading."""
    found = re.search(rf'<section id="{name}">.*?</section>', text, re.S)
    return found[0] if found else ""


def test_a_finished_run_is_told_whole(tmp_path):
    path = run_folder(
        tmp_path / "good",
        falling(),
        evaluations=[measured("knn", 40.0, 37.0, 43.0), measured("knn", 30.0, 27.0, 33.0, random=True), measured("linear", None, 0.2, 0.4, metric="r2", r2=0.3)],
        quarantine=[{"path": "<b>bad</b>.jpg", "reason": "truncated"}],
        config={"weight_decay": 0.1, "method.mask_ratio": 0.75},
        patch_mean=0.98,
        copy_nearest=1.4,
        images_per_second=90.0,
        data_wait=0.02,
    )
    for step in (50, 100, 200):
        drawn(path, step)
    text, seen = written(path)
    assert "lower than both baselines" in text and "intervals do not touch" in text
    assert "&lt;b&gt;bad&lt;/b&gt;.jpg" in text and "<b>bad" not in text
    assert "--random" in text and "&#x27;my photos/train&#x27;" in text  # commands are quoted for the shell
    assert "the paper&#x27;s: 0.05" in section(text, "settings") and section(text, "settings").count("paper&#x27;s: 0.75") == 0
    assert "R²" in section(text, "evaluations") and "0.200 to 0.400" in section(text, "evaluations") and "30.0 %" in section(text, "evaluations")
    assert "torch" in section(text, "machine-and-versions") and "71 s" in section(text, "speed-and-data")  # 200 steps of 32 at 90 a second
    pictures = section(text, "what-it-imagines")
    assert "Step 200" in pictures and "Seams are normal." in pictures and pictures.count("<img") == 2 * 4 + 2 * (1 + 3)
    assert {"a/1.png: original", "a/1.png: prediction", "b/2.png: prediction at step 50"} <= {picture["alt"] for picture in seen.all("img")}


@pytest.mark.parametrize("missing", ["status.json", "metrics.jsonl", "config.yaml", "evaluations.jsonl", "quarantine.jsonl", "data.json", "environment.json"])
def test_missing_pieces_are_left_out(tmp_path, missing):
    path = run_folder(tmp_path / "part", falling(30))
    (path / missing).unlink()
    text, _ = written(path)
    assert "In words" in text and "Settings" in text if missing != "config.yaml" else "In words" in text


def test_a_run_that_has_only_begun(tmp_path):
    path = run_folder(tmp_path / "new", status="running")
    (path / "metrics.jsonl").write_text('{"step": 1, "lo')
    (path / "status.json").write_text("{")
    (path / "pictures" / "step-1.png").write_bytes(b"")
    (path / ".lock").touch()
    text, _ = written(path)
    assert "No step has been written down yet" in text and "unmask resume" in text and ">stopped<" in text
    path = run_folder(tmp_path / "one", [1.0], status="interrupted", patch_mean=None)
    text, _ = written(path)
    assert "unmask resume here" in text and "cannot be told" in text


def test_sheets_of_older_runs_are_shown_whole(tmp_path):
    path = run_folder(tmp_path / "old", falling(), pictures=(50, 200))
    _, seen = written(path)
    assert "step 200" in seen.all("img")[0]["alt"] and len(seen.all("img")) == 1


def test_several_runs_are_told_apart(tmp_path):
    rows = [measured("knn", 40.0, 37.0, 43.0), measured("knn", 30.0, 27.0, 33.0, random=True)]
    panels = [Image.effect_noise((32, 32), 90).convert("RGB") for _ in HEADER]
    first = drawn(run_folder(tmp_path / "a", falling(), evaluations=rows, patch_mean=0.98), 200, panels=panels)
    second = run_folder(tmp_path / "b", falling(100, 0.8), status="interrupted", evaluations=[measured("knn", 50.0, 47.0, 53.0)], config={"lr": 0.0003, "steps": 200}, patch_mean=0.98)
    drawn(second, 100, ("b/2.png", "c/3.png"), panels=panels)
    text, seen = written(first, second, out=tmp_path / "out" / "both.html")
    differs = section(text, "what-differs")
    assert "<b>≠ 0.0003</b>" in differs and "batch_size" not in differs and differs.count("<tr>") == 2
    assert "B (b) has top-1 50.0 %, A (a) 40.0 %; the intervals do not touch" in section(text, "in-words")
    assert "lowest" in section(text, "where-it-led") and "100 of 200" in section(text, "where-it-led")
    alts = {picture["alt"] for picture in seen.all("img")}
    assert {"b/2.png: original", "b/2.png: what a sees of it", "b/2.png: prediction of a", "b/2.png: prediction of b"} == alts  # the same mask once, only what both drew
    assert "unmask resume here" in section(text, "what-to-try-next") and "the same for all" in section(text, "machine-and-versions").lower()
    assert section(text, "evaluations").count(">A</b>") == 2 and "from random weights" in section(text, "evaluations")


PROBE = """<script>addEventListener('load', () => {
  for (const folded of document.querySelectorAll('details')) folded.open = true;
  const wide = [...document.querySelectorAll('body *')].filter(e => e.getBoundingClientRect().right > innerWidth + 1 && !e.closest('.scroll'));
  parent.document.title = JSON.stringify([innerWidth, document.documentElement.scrollWidth, wide.map(e => e.outerHTML.slice(0, 80)).slice(0, 5)]);
})</script></body>"""


@pytest.mark.parametrize("width", [390, 320])
def test_nothing_is_wider_than_a_phone(tmp_path, width):
    """As a browser lays it out, with everything unfolded; tables scroll inside themselves."""
    browser = next((path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None)
    if browser is None:
        pytest.skip("no chromium on this machine")
    rows = [measured(protocol, 40.0, 37.0, 43.0, random=random, pooling="cls+avg") for protocol in ("knn", "linear") for random in (False, True)]
    long = {"data": "/a/very/long/path/without/a/single/place/to/break/it/anywhere/at/all/pictures.parquet", "lr": 1e-4, "seed": 7}
    bad = [{"path": long["data"] * 2, "reason": "image file is truncated"}]
    first = drawn(run_folder(tmp_path / "a", falling(), evaluations=rows, patch_mean=0.98, quarantine=bad), 200)
    second = drawn(run_folder(tmp_path / ("b" * 40), falling(), evaluations=rows, config=long), 200)
    drawn(first, 100)
    for i, runs in enumerate(([first], [first, second])):
        text = report.write(runs, tmp_path / f"{i}.html").read_text(encoding="utf-8")
        frame = f'<title></title><iframe width={width} height=900 srcdoc="{escape(text.replace("</body>", PROBE), quote=True)}"></iframe>'
        (tmp_path / "frame.html").write_text(frame, encoding="utf-8")
        quiet = "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking --disable-component-update --disable-sync"
        words = [browser, *quiet.split(), f"--user-data-dir={tmp_path}/browser", "--dump-dom", (tmp_path / "frame.html").as_uri()]
        done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=True).stdout
        inner, needed, wide = json.loads(unescape(re.search("<title>(.*?)</title>", done)[1]))
        assert (inner, wide) == (width, []) and needed <= width


def test_losses_that_tell_different_things_are_not_compared(tmp_path):
    first = run_folder(tmp_path / "a", falling(), config={"method.mask_ratio": 0.75})
    second = run_folder(tmp_path / "b", falling(to=0.6), config={"method.mask_ratio": 0.5})
    text, _ = written(first, second, out=tmp_path / "both.html")
    assert "not compared: method.mask_ratio differs" in text and "lowest" not in section(text, "where-it-led")


def test_runs_of_different_kinds_stand_beside_each_other(tmp_path):
    first = drawn(run_folder(tmp_path / "pre", falling(), evaluations=[measured("finetune", 70.0, 66.0, 74.0, run=str(tmp_path / "tuned"))], patch_mean=0.98), 200)
    tuned = {"method": "finetune", "encoder": "runs/pre", "mixup": 0.8, "model": None}
    second = run_folder(tmp_path / "tuned", falling(80, 2.0), config=tuned, every={80: {"top1": 69.0, "val_loss": 1.1, "majority": 11.0}}, evaluations=[measured("finetune", 70.0, 66.0, 74.0)])
    broken = run_folder(tmp_path / "broken", [1.0], status="failed")
    (broken / "config.yaml").write_text("- no\n- settings")
    text, _ = written(first, second, out=tmp_path / "two.html")
    assert "settings that only some of these runs have" in text and section(text, "what-differs").index("method</code>") < section(text, "what-differs").index("mixup")
    assert section(text, "evaluations").count("70.0 %") == 1  # the figure of the fine-tuning, in its own line alone
    text, _ = written(first, second, broken, out=tmp_path / "all.html")
    assert "Loss of mae" in text and "Loss of finetune" in text and "Validation accuracy" in text
    assert ">failed<" in text and "mixup" in section(text, "what-differs") and "batch_size" not in section(text, "what-differs")
    assert f"unmask compare &#x27;my photos/train&#x27; {first} {second}</code>" in section(text, "what-to-try-next")  # the broken one has no encoder
    assert "prediction of pre" in text  # alone, it is still shown
    assert "fine-tuned" in section(written(first)[0], "evaluations")
    text, _ = written(second)
    assert "69.0 %" in text and "unmask reconstruct" not in text


def test_the_same_run_twice_and_twins(tmp_path):
    first, twin = run_folder(tmp_path / "x" / "a", falling()), run_folder(tmp_path / "y" / "a", falling())
    text, _ = written(first, first / ".." / "a")
    assert "side by side" not in text and (first / "report.html").is_file()
    text, _ = written(first, twin, out=tmp_path)
    assert "x/a" in text and "y/a" in text and (tmp_path / "report.html").is_file() and "the same." in section(text, "what-differs")


def with_weights(path, seed):
    """A run whose network can be opened again."""
    from safetensors.torch import save_file

    from unmask.load import metadata_of

    torch.manual_seed(seed)
    words = {"model": "vit_tiny_patch16_224", "img_size": (32, 32), "in_chans": 3, "patch_size": 8, "width": 24, "depth": 1, "heads": 2}
    method = MAE(decoder_width=16, decoder_depth=1, decoder_heads=1)
    save_file(method.build(**words).state_dict(), path / "model.safetensors", metadata_of(method, "mae", **words))
    statistics = {"in_chans": 3, "low": [0.0] * 3, "high": [255.0] * 3, "mean": [0.5] * 3, "std": [0.25] * 3}
    (path / "data.json").write_text(json.dumps({"count": 4, "fingerprint": "x", "statistics": statistics}))
    return path


def test_runs_that_drew_different_pictures_draw_the_same_ones_now(tmp_path):
    for i in range(4):
        (tmp_path / "photos").mkdir(exist_ok=True)
        Image.effect_noise((40, 40), 80).convert("RGB").save(tmp_path / "photos" / f"{i}.png")
    settings = {"img_size": [32, 32], "data": str(tmp_path / "photos")}
    first = with_weights(drawn(run_folder(tmp_path / "a", falling(), config=settings), 200, ("one.png",)), 0)
    second = with_weights(drawn(run_folder(tmp_path / "b", falling(), config=settings), 200, ("two.png",)), 1)
    _, seen = written(first, second, out=tmp_path / "both.html")
    alts = {picture["alt"] for picture in seen.all("img")}
    assert {"photos/0.png: original", "photos/0.png: what a sees of it", "photos/3.png: prediction of b"} <= alts and "photos/0.png: what b sees of it" not in alts
    (second / "model.safetensors").unlink()
    text, _ = written(first, second, out=tmp_path / "half.html")
    assert "neither model.safetensors nor a complete checkpoint" in text and "prediction of a" in text
    for picture in (tmp_path / "photos").iterdir():
        picture.unlink()
    text, _ = written(first, second, out=tmp_path / "gone.html")
    assert "--pictures DATA" in text and "one.png: prediction" in text and "two.png: prediction" in text
    with pytest.raises(Refused):
        report.write([first, second], tmp_path / "no.html", pictures=tmp_path / "photos")


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(Refused, match="nowhere"):
        report.write([tmp_path / "nowhere"])
    with pytest.raises(Refused, match="is no run"):
        report.write([tmp_path])
    with pytest.raises(Refused, match="at least one"):
        report.write([])


def test_no_code_of_a_run_from_elsewhere_is_run(tmp_path):
    """A method of one's own is a file; to report on its run does not open that file."""
    (tmp_path / "method.py").write_text("raise SystemExit('run')")
    path = run_folder(tmp_path / "run", falling(), config={"method": f"{tmp_path}/method.py:Mine"})
    text, _ = written(path)
    assert "method.py:Mine" in text


def test_it_is_written_without_torch(tmp_path):
    path = drawn(run_folder(tmp_path / "run", falling()), 200)
    script = "import sys; from unmask.visualize.report import write; write(sys.argv[1:]); print(sorted({'torch', 'matplotlib'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=True).stdout == "[]\n"
