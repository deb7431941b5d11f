"""The modern MAE: its parts beside small forms of their own, and runs with captions as a person makes them."""

import json
import math
import os
import signal
import tarfile

import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close

import unmask
from unmask import cli, seeds
from unmask.contrast import sigmoid_pairs
from unmask.errors import Interrupted, Refused
from unmask.methods.modern_mae import ModernMAE
from unmask.settings import Ratio
from unmask.testing import SMALL, pictures
from unmask.text import Paired, Words
from unmask.training import step

TRUNK = "vit_small_plus_patch16_dinov3"
BUILD = SMALL | {"model": TRUNK, "img_size": (32, 32), "patch_size": 4}
FEW = {"model": TRUNK, "width": 32, "depth": 2, "heads": 2, "patch_size": 8, "img_size": (32, 32), "batch_size": 8, "accelerator": "cpu", "workers": 0, "monitor_every": 1000}
FEW |= {"method.decoder_width": 32, "method.decoder_depth": 1, "method.text_depth": 1, "method.text_width": 32, "method.text_length": 12, "method.embedding": 16}
WORDS = ["a", "dog", "cat", "hill"]


def test_the_trunk_is_the_modern_one_at_the_size_of_the_proof():
    trunk = ModernMAE().build(TRUNK, (32, 32), patch_size=4, width=96, depth=4, heads=3).encoder.trunk
    assert trunk.reg_token.shape[1] == 4 and trunk.num_prefix_tokens == 5 and trunk.pos_embed is None and trunk.rope is not None
    assert type(trunk.blocks[0].mlp).__name__ == "SwiGLU" and trunk.unmask_kwargs["init_values"] == 1.0
    assert bool((trunk.blocks[0].gamma_1 == 1).all())
    more = ModernMAE(registers=7, layer_scale=0.1).build(**BUILD).encoder.trunk
    assert more.num_prefix_tokens == 8 and more.blocks[1].gamma_2[0].item() == pytest.approx(0.1)
    with pytest.raises(Refused, match="registers"):
        ModernMAE(registers=2).build("hiera_tiny_224", (32, 32), patch_size=1, width=24)


def test_the_ratio_rises_over_the_run():
    learner, seen = ModernMAE().build(**BUILD), []
    x = pictures(2)
    for progress in (0.0, 0.5, 0.999):
        learner.before_step(progress, 0.3)
        seen.append(learner.draw_mask(x, torch.rand(2, learner.draws(x))).visible_ids.shape[1])
    assert seen[0] == 32 and seen[0] > seen[1] > seen[2] == 16
    assert ModernMAE(mask_ratio="medical").mask_ratio == Ratio(0.5, 0.5)


def test_the_loss_is_that_of_its_parts():
    """An independent form of all three: pixels and features of hidden patches, pairs of pictures and captions, with their weights."""
    method = ModernMAE(target="both", teacher="random:vit_tiny_patch16_224", text="own", text_length=6, text_depth=1, pixels_weight=2.0, features_weight=3.0, text_weight=0.5)
    torch.manual_seed(0)
    learner = method.build(**BUILD, vocabulary=WORDS).eval()
    x = {"images": pictures(4), "text": Words(WORDS, 6)(["a dog", "a cat", "hill", "dog cat hill"])}
    mask = learner.draw_mask(x, seeds.uniform((4, learner.draws(x)), 0, "modern"))
    losses = learner(x, mask=mask)
    features = learner.encoder(x["images"], mask)
    squares = x["images"].unfold(2, 4, 4).unfold(3, 4, 4).permute(0, 2, 3, 1, 4, 5).reshape(4, 64, 48)
    truth = (squares - squares.mean(-1, keepdim=True)) / (squares.var(-1, keepdim=True) + 1e-6).sqrt()
    hidden = torch.stack([truth[row][ids] for row, ids in enumerate(mask.masked_ids)])
    said = learner.objectives["pixels"].decoder(features, mask)
    assert_close(losses["pixels"], 2 * ((said - hidden) ** 2).mean(), rtol=1e-4, atol=1e-5)
    target = learner.objectives["features"].target(x["images"])
    aim = torch.stack([target[row][ids] for row, ids in enumerate(mask.masked_ids)])
    said = learner.objectives["features"].decoder(features, mask)
    cosine = (said * aim).sum(-1) / said.norm(dim=-1) / aim.norm(dim=-1)
    assert_close(losses["features"], -3 * cosine.mean(), rtol=1e-4, atol=1e-5)
    part = learner.objectives["text"]
    assert (part.log_temperature.item(), part.bias.item()) == (pytest.approx(math.log(10)), -10)
    seen = features.patches.mean(1) @ part.of_picture.weight.T + part.of_picture.bias
    pairs = sigmoid_pairs(seen, part.of_text(part.tower(x["text"])), torch.tensor(math.log(10.0)), torch.tensor(-10.0))
    assert_close(losses["text"], 0.5 * pairs, rtol=1e-4, atol=1e-5)
    assert_close(losses["loss"], losses["pixels"] + losses["features"] + losses["text"])


@pytest.mark.parametrize(
    ("words", "answer"),
    [({"target": "features"}, "needs a teacher"), ({"teacher": "runs/a"}, "does not ask it"), ({"text_weight": 0}, "text_weight"), ({"mask_ratio": 1.5}, "mask_ratio")],
)
def test_what_does_not_fit_together_is_refused(words, answer):
    with pytest.raises(ValueError, match=answer):
        ModernMAE(**words)


def test_captions_want_words_and_sentences():
    with pytest.raises(Refused, match="learns its words from captions"):
        ModernMAE(text="own").build(**BUILD)
    learner = ModernMAE(text="own", text_depth=1).build(**BUILD, vocabulary=WORDS)
    with pytest.raises(ValueError, match="reads captions"):
        learner(pictures(2))


@pytest.fixture(scope="module")
def flickr(shared_data, tmp_path_factory):
    """A tar of 48 real pictures with their captions inside: 40 teach, 8 judge."""
    archive, folder = shared_data / "flickr8k_1k.tar", tmp_path_factory.mktemp("flickr")
    if not archive.is_file():
        pytest.skip(f"no {archive}")
    with tarfile.open(archive) as tar, tarfile.open(folder / "few.tar", "w") as few:
        rows = [json.loads(line) for line in tar.extractfile("captions.jsonl").read().splitlines()]
        some = [row for row in rows if row["split"] == "train"][:40] + [row for row in rows if row["split"] == "val"][:8]
        (folder / "captions.jsonl").write_text("\n".join(map(json.dumps, some)))
        few.add(folder / "captions.jsonl", "captions.jsonl")
        for row in some:
            few.addfile(tar.getmember(row["file"]), tar.extractfile(row["file"]))
    return folder


@pytest.fixture(scope="module")
def run(flickr, tmp_path_factory):
    return unmask.pretrain("modern_mae", str(flickr / "few.tar"), out=tmp_path_factory.mktemp("runs") / "whole", **FEW, **{"method.text": "own"}, steps=6, checkpoint_every=3)


def test_a_run_with_captions_keeps_its_words_and_its_encoder_knows_none(run, flickr):
    kept = json.loads((run / "data.json").read_text())
    assert kept["count"] == 40 and "dog" in kept["vocabulary"]
    part = next(part for part in unmask.load(run).modules() if isinstance(part, Paired))
    assert part.reader.vocabulary == kept["vocabulary"] and part.embed(["a dog", "a cat"]).shape == (2, 16)
    assert any(name.startswith("objectives.text.tower.") for name in load_file(run / "model.safetensors"))
    assert not [name for name in load_file(run / "encoder.safetensors") if "text" in name or "tower" in name or "objectives" in name]
    encoder = unmask.load_encoder(run)
    drawn = unmask.load_encoder(run, random=True)
    assert bool((drawn.blocks[0].gamma_1 == 1).all()), "a random encoder begins as a run does"
    assert set(load_file(run / "encoder.safetensors")) == set(encoder.state_dict())


def stopped(monkeypatch, out, data, **more):
    """A run that a signal stops in its third step."""
    real, steps = step.clip, list[int]()

    def clip(*words):
        steps.append(1)
        if len(steps) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(*words)

    with monkeypatch.context() as patch:
        patch.setattr(step, "clip", clip)
        with pytest.raises(Interrupted):
            unmask.pretrain("modern_mae", str(data), out=out, **FEW, steps=6, checkpoint_every=3, **more)


def test_a_run_that_stopped_goes_on_to_the_same_weights_at_any_number_of_workers(run, flickr, tmp_path, monkeypatch):
    out = tmp_path / "again"
    stopped(monkeypatch, out, flickr / "few.tar", **{"method.text": "own"})
    unmask.resume(out, workers=1)
    one, other = load_file(run / "model.safetensors"), load_file(out / "model.safetensors")
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_other_captions_are_not_the_ones_that_a_run_began_with(flickr, tmp_path, monkeypatch):
    path, out = tmp_path / "said.jsonl", tmp_path / "run"
    path.write_text((flickr / "captions.jsonl").read_text())
    stopped(monkeypatch, out, flickr / "few.tar", captions=str(path))
    config = (out / "config.yaml").read_text()
    assert "method.text: own" in config and f"captions: {path}" in config
    path.write_text(path.read_text().replace("dog", "wolf"))
    with pytest.raises(Refused, match="not those that the run began with"):
        unmask.resume(out)


def test_a_run_with_captions_is_evaluated_drawn_and_exported(run, flickr, tmp_path, capsys):
    data = str(flickr / "few.tar")
    rows = [unmask.evaluate("retrieval", run, data, workers=0, random=random) for random in (False, True)]
    for row in rows:
        assert row["n_val"] == 8 and row["captions"] == 40 and row["text_to_image_chance"]["recall@1"] == 12.5 and row["metric"] == "mean_recall"
    assert rows[0]["mean_recall"] != rows[1]["mean_recall"] or rows[0]["image_to_text"] != rows[1]["image_to_text"]
    assert rows[0] | {"seconds": 0} == unmask.evaluate("retrieval", run, data, workers=1) | {"seconds": 0}
    labels = tmp_path / "labels.csv"
    said = [json.loads(line) for line in (flickr / "captions.jsonl").read_text().splitlines()]
    labels.write_text("path,label\n" + "\n".join(f"{row['file']},{'dog' if 'dog' in row['captions'][0] else 'zyx'}" for row in said))
    row = unmask.evaluate("zeroshot", run, data, labels=str(labels), templates=("a {}", "the {} there"), workers=0)
    assert row["metric"] == "top1" and row["classes"] == 2 and row["templates"] == ["a {}", "the {} there"] and row["unknown_words"] == ["zyx"]
    assert len((run / "evaluations.jsonl").read_text().splitlines()) >= 4
    unmask.reconstruct(run, data, out=str(tmp_path / "grid.png"), count=2)
    unmask.report(run, out=str(tmp_path / "report.html"))
    assert "mean recall" in (tmp_path / "report.html").read_text()
    unmask.export(run, to="timm", out=str(tmp_path / "timm"))
    assert (tmp_path / "grid.png").is_file()


def test_a_run_without_a_text_tower_is_told_so(flickr, tmp_path):
    plain = unmask.pretrain("mae", str(flickr / "few.tar"), out=tmp_path / "plain", model="vit_tiny_patch16_224", **{key: value for key, value in FEW.items() if "text" not in key and key not in ("model", "method.embedding")}, steps=1)
    with pytest.raises(Refused, match="wants a run that read captions"):
        unmask.evaluate("retrieval", "random:vit_tiny_patch16_224", str(flickr / "few.tar"))
    with pytest.raises(Refused, match="has no text tower"):
        unmask.evaluate("retrieval", plain, str(flickr / "few.tar"), workers=0)
    assert cli.main(["pretrain", "mae", str(flickr / "few.tar"), "--captions", str(flickr / "captions.jsonl"), "--out", str(tmp_path / "no")]) == 2
    assert cli.main(["evaluate", "zeroshot", str(plain), str(flickr / "few.tar"), "--templates", "no place for a name"]) == 2
