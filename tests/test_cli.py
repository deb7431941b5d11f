"""The command line as a person meets it: at once, in one line, with what was meant."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from unmask import cli
from unmask.commands import Command

HEAVY = {"torch", "numpy", "timm", "PIL", "lightning", "matplotlib", "rich"}


def run(*words, cwd=None):
    environment = os.environ | {"COLUMNS": "120"}
    return subprocess.run([sys.executable, "-m", "unmask", *map(str, words)], capture_output=True, text=True, cwd=cwd, env=environment)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for name in "ab":
            (folder / split / name).mkdir(parents=True)
            for i in range(6):
                level = 60 if name == "a" else 180
                Image.fromarray((rng.normal(level, 20, (40, 48, 3))).clip(0, 255).astype("uint8")).save(folder / split / name / f"{i}.png")
    return folder


@pytest.mark.parametrize(
    ("words", "code", "answer"),
    [
        ("--help", 0, "pretrain"),
        ("", 0, "usage"),
        ("--version", 0, "unmask 0."),
        ("pretrain --help", 0, "--img_size H W"),
        ("pretrain mae --help", 0, "--method.mask_ratio"),
        ("evaluate --help", 0, "evaluate knn"),
        ("evaluate knn --help", 0, "--temperature"),
        ("methods", 0, "mae"),
        ("models tiny_patch16", 0, "vit_tiny_patch16_224"),
        ("models tinny", 2, "tinny"),
        ("pretrian", 2, "did you mean pretrain?"),
        ("evaluat knn", 2, "did you mean evaluate?"),
        ("evaluate kn run DATA", 2, "did you mean knn?"),
        ("show maks", 2, "did you mean mask?"),
        ("--quiet pretrain", 2, "before the command"),
        ("pretrain maee DATA --out x", 2, "did you mean mae?"),
        ("pretrain mae", 2, "DATA is missing"),
        ("pretrain mae DATA", 2, "--out is missing"),
        ("pretrain mae DATA more --out x", 2, "'more' is a word too many"),
        ("pretrain mae nowhere --out x", 2, "nowhere"),
        ("pretrain mae DATA --out x --epoch 3", 2, "unknown option --epoch, did you mean --epochs?"),
        ("pretrain mae DATA --out x --epochs 3 --steps 3", 2, "--epochs and --steps"),
        ("pretrain mae DATA --out x --img_size big", 2, "--img_size"),
        ("pretrain mae DATA --out x --lr -1", 2, "--lr must be more than 0"),
        ("pretrain mae DATA --out x --time 8", 2, "--time must be a number and its unit"),
        ("pretrain mae DATA --out x --method.mask_ratio 1.5", 2, "--method.mask_ratio"),
        ("pretrain mae DATA --out x --method.decoder_width 0", 2, "--method.decoder_width must be at least 1"),
        ("pretrain mae DATA --out x --method.mask_rati .5", 2, "did you mean --method.mask_ratio?"),
        ("pretrain mae DATA --out x --model vit_tinny_patch16_224", 2, "vit_tiny_patch16_224"),
        ("pretrain mae DATA --out x --init no-such-run", 2, "no-such-run"),
        ("pretrain mae DATA --out x --labels none.csv", 2, "none.csv"),
        ("pretrain mae DATA --out DATA", 2, "DATA"),
        ("pretrain mae DATA --out x --model resnet50", 2, "resnet50"),
        ("pretrain mae DATA --out x --img_size 30 --patch_size 8", 2, "no multiple of patch_size 8"),
        ("evaluate knn random:vit_tinyy_patch16_224 DATA", 2, "did you mean vit_tiny_patch16_224?"),
        ("pretrain mae DATA --out x --config none.yaml", 2, "none.yaml"),
        ("resume nothing-here", 2, "nothing-here"),
        ("evaluate knn no-run DATA", 2, "no-run"),
        ("evaluate knn random:vit_tiny_patch16_224", 2, "DATA is missing"),
        ("evaluate knn random:vit_tiny_patch16_224 nowhere", 2, "nowhere"),
        ("evaluate knn random:vit_tiny_patch16_224 DATA --k 0", 2, "--k must be at least 1"),
        ("compare DATA random:vit_tiny_patch16_224 --labels none.csv", 2, "none.csv"),
        ("evaluate finetune random:vit_tiny_patch16_224 DATA --out x --labels none.csv", 2, "none.csv"),
        ("evaluate lowshot random:vit_tiny_patch16_224 DATA --shots 2 --labels none.csv", 2, "none.csv"),
        ("evaluate lowshot random:vit_tiny_patch16_224 DATA --shots 2 --epochs 3", 2, "--epochs belongs to --finetune"),
        ("export random:vit_tiny_patch16_224 --to keras --out x", 2, "none of timm, hf, onnx, safetensors"),
        ("embed random:vit_tiny_patch16_224 DATA --out x.csv", 2, ".npz or .parquet"),
        ("reconstruct run", 2, "IMAGES is missing"),
        ("show mask block --mask_ratio 2", 2, "--mask_ratio"),
    ],
)
def test_answers_without_torch(words, code, answer, photos, tmp_path):
    said = [photos / "train" if word == "DATA" else word for word in words.split()]
    script = "import sys; from unmask.cli import main; code = main(sys.argv[1:]); print('LOADED', *sys.modules); sys.exit(code)"
    done = subprocess.run([sys.executable, "-c", script, *map(str, said)], capture_output=True, text=True, cwd=tmp_path, env=os.environ | {"COLUMNS": "120"})
    out, _, loaded = done.stdout.partition("LOADED")
    assert done.returncode == code, done.stderr
    assert (str(photos) if answer == "DATA" else answer) in out + done.stderr
    assert not HEAVY & set(loaded.split())
    if code:
        assert done.stderr.startswith("unmask: ") and len(done.stderr.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())  # nothing is left behind


def test_it_starts_fast():
    """Without help from a warm file cache this takes about .06 s of CPU; torch alone takes more than a second."""
    import resource

    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    times = []
    for _ in range(5):
        run("pretrain", "mae", "--help")
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        before = after
    assert min(times) < 0.3


def test_words_of_pretrain_may_come_in_any_order(monkeypatch, photos, tmp_path):
    seen = []
    monkeypatch.setitem(cli.COMMANDS, "pretrain", Command("", "", lambda *words, **values: seen.append((words, values)), cli.COMMANDS["pretrain"].settings))
    config = tmp_path / "c.yaml"
    config.write_text("method: mae\ndata: pics\nmethod.mask_ratio: 0.5\n")
    for words in (
        f"mae {photos} --out x --img_size 64 96 --method.masking grid",
        f"--out x --img_size 64 96 --method.masking grid mae {photos}",
        f"--img_size 64,96 mae --method.masking=grid {photos} --out x",
    ):
        assert cli.main(["pretrain", *words.split()]) == 0
    assert seen == [(("mae", str(photos)), {"out": "x", "img_size": (64, 96), "method.masking": "grid"})] * 3
    seen.clear()
    for words in (f"--config {config} --out x", f"--config {config} {photos} --out x", f"mae --config={config} --out x --method.masking grid"):
        assert cli.main(["pretrain", *words.split()]) == 0
    assert [words for words, _ in seen] == [(None, None), ("mae", str(photos)), ("mae", None)]
    assert cli.main(f"pretrain maee --config {config} --out x".split()) == 2


def test_a_stop_and_a_full_disk_end_in_one_line(monkeypatch, capsys):
    for error, code, said in ((KeyboardInterrupt(), 130, "stopped"), (OSError(28, "No space left on device", "x"), 1, "No space left on device: x")):

        def stop(raised=error):
            raise raised

        monkeypatch.setitem(cli.COMMANDS, "methods", Command("", "", stop))
        assert cli.main(["methods"]) == code
        assert capsys.readouterr().err.strip() == f"unmask: {said}"


def test_a_closed_pipe_is_no_error():
    done = subprocess.run(f"{sys.executable} -m unmask models | head -n 1", shell=True, capture_output=True, text=True)
    assert done.stdout.count("\n") == 1 and "Traceback" not in done.stderr


def test_json_is_alone_on_stdout(photos, tmp_path):
    done = run("inspect", photos / "train", "--json", cwd=tmp_path)
    assert json.loads(done.stdout)["samples"] == 12 and "12 samples" in done.stderr
    done = run("evaluate", "knn", "random:vit_tiny_patch16_224", photos / "train", "--val", photos / "val", "--img_size", "32", "--quiet", cwd=tmp_path)
    row = json.loads(done.stdout)
    assert {"protocol", "top1", "pooling", "img_size", "seed", "n_train", "n_val", "seconds", "interval"} <= set(row)
    assert row["top1"] == 100 and row["n_val"] == 12  # dark and bright pictures
    assert row["interval"][0] < 100


@pytest.mark.parametrize(("word", "seen"), [("--json", "by a child\n"), ("--quiet", "")])
def test_processes_that_a_verb_starts_leave_stdout_alone(word, seen, monkeypatch, capfd):
    """The file descriptor is turned: a child's words go to stderr or nowhere, and stdout is there again afterwards."""
    verb = Command("", "", lambda: subprocess.run(["echo", "by a child"], check=True) and None)
    monkeypatch.setitem(cli.COMMANDS, "methods", verb)
    assert cli.main(["methods", word]) == 0
    said = capfd.readouterr()
    assert said.out == ("{}\n" if word == "--json" else "") and said.err == seen
    os.write(1, b"again")
    assert capfd.readouterr().out == "again"


def test_json_is_alone_with_several_processes(photos, tmp_path):
    """What the processes of a run print, gloo in C++ among them, does not come between a program and its JSON."""
    small = "--img_size 32 --patch_size 8 --width 24 --heads 2 --depth 1 --method.decoder_width 16 --method.decoder_depth 1 --method.decoder_heads 1"
    words = f"{small} --model vit_tiny_patch16_224 --batch_size 4 --steps 2 --workers 0 --accelerator cpu --devices 2"
    done = run("pretrain", "mae", photos / "train", "--out", tmp_path / "run", *words.split(), "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"out": str(tmp_path / "run")} and "finished" in done.stderr


def test_no_labels_is_said(photos, tmp_path):
    done = run("evaluate", "knn", "random:vit_tiny_patch16_224", photos / "train" / "a", "--img_size", "32", cwd=tmp_path)
    assert done.returncode == 2 and "label" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(("own", "then"), [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_threads_that_wait_sleep_unless_the_user_says_otherwise(own, then, monkeypatch, capsys):
    monkeypatch.setenv("OMP_WAIT_POLICY", "")  # put back afterwards, whatever main does
    monkeypatch.delenv("OMP_WAIT_POLICY")
    if own:
        monkeypatch.setenv("OMP_WAIT_POLICY", own)
    assert cli.main(["--version"]) == 0 and os.environ["OMP_WAIT_POLICY"] == then


@pytest.mark.parametrize(
    ("words", "method"),
    [
        ("--init timm:vit_tiny_patch16_224 mae d", "mae"),
        ("--out mae simmim d --method.cell 16", "simmim"),
        ("--img_size 32 32 --no-flag mae d --out x", "mae"),
        ("--out=mae my_method.py:Mine d", "my_method.py:Mine"),
    ],
)
def test_the_method_is_no_value_of_an_option(words, method):
    assert cli.method_of("pretrain", words.split()) == method


def test_data_of_the_hub_is_no_method(tmp_path):
    (tmp_path / "c.yaml").write_text("method: simmim\n")
    assert cli.method_of("pretrain", f"--config {tmp_path / 'c.yaml'} hf:cifar10".split()) == "simmim"
