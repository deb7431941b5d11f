"""Image GPT against the official code's numbers: colour ids, logits, loss, gradients of the causal objective."""

import json
import math

import pytest
import timm
import torch
from golden_files import check_gradients, keys, names
from torch.testing import assert_close

from unmask.encoders.coded import regular
from unmask.errors import Refused
from unmask.interchange import igpt
from unmask.interchange.encoder import load_encoder
from unmask.interchange.timm_export import export_timm
from unmask.load import load
from unmask.methods.igpt import IGPT
from unmask.targets.codes import Codes
from unmask.testing import SMALL, case_of, check_leak, pictures
from unmask.tokenizers.palette import Palette
from unmask.visualize.answers import grid

OFFICIAL = "openai/image-gpt@"


def ours(official: dict, N: int) -> dict:
    """The official variables by our names; of places the last patch's, which nothing reads, is zero."""
    found, trunk = {}, "encoder.trunk."
    plain = {"wte": trunk + "patch_embed.proj.weight", "ln_f/g": trunk + "norm.weight", "wtet": "objectives.codes.decoder.predict.weight"}
    blocks = {"ln_1/g": "norm1.weight", "ln_2/g": "norm2.weight", "mlp/c_fc/w": "mlp.fc1.weight", "mlp/c_proj/w": "mlp.fc2.weight"}
    for key, value in official.items():
        name = key.removeprefix("model/")
        if name in plain:
            found[plain[name]] = value
        elif name == "sos":
            found[trunk + "cls_token"] = value.reshape(1, 1, -1)
        elif name == "wpe":
            found[trunk + "pos_embed"] = torch.cat([value, torch.zeros(1, value.shape[1])]).unsqueeze(0)
        elif name.startswith("h"):
            number, _, rest = name[1:].partition("/")
            block = f"{trunk}blocks.{number}."
            if rest in blocks:
                found[block + blocks[rest]] = value.T if value.dim() == 2 else value
            elif rest == "attn/c_proj":
                found[block + "attn.proj.weight"] = value.flatten(0, 1).T
            elif rest == "attn/q_proj" and f"model/h{number}/attn/v_proj" in official:
                parts = [official[f"model/h{number}/attn/{part}_proj"].flatten(0, 1) for part in "qkv"]
                found[block + "attn.qkv.weight"] = torch.cat(parts)
    return found


def part(tensors, prefix):
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


def learner_of(tensors, config):
    side, colours = math.isqrt(config["n_ctx"]), (tensors["input.palette"] + 1) / 2
    words = {"img_size": side, "embed_dim": config["n_embd"], "depth": config["n_layer"], "num_heads": config["n_head"]}
    trunk = timm.create_model("igpt_small_patch1_32", num_classes=0, dynamic_img_size=True, **words)
    embed = trunk.patch_embed
    embed.colours = colours
    embed.proj = type(embed.proj)(len(colours), config["n_embd"])
    learner = IGPT(prefix=False).build(trunk)
    state = learner.state_dict() | ours(part(tensors, "weights."), config["n_ctx"])
    assert len(state) == len(learner.state_dict())
    learner.load_state_dict(state)
    return learner


@pytest.mark.golden
@pytest.mark.parametrize("name", names("igpt", "output.ar_logits", OFFICIAL))
def test_logits_loss_and_gradients_equal_the_official_code(golden, name):
    tensors, metadata = golden(name)
    config = metadata["config"]
    learner, x = learner_of(tensors, config), tensors["input.picture_uint8"].float() / 255
    target = learner.objectives["codes"].target
    assert torch.equal(target(x), tensors["input.ids"])
    mask = learner.draw_mask(x)
    found = learner.predict(x, mask, "codes")
    assert_close(found["prediction"], tensors["output.ar_logits"], rtol=1e-5, atol=1e-5)
    loss = learner(x, mask=mask)["loss"]
    assert_close(loss, tensors["output.ar_gen_loss"], rtol=1e-6, atol=1e-6)
    loss.backward()
    gradients = part(tensors, "grad.ar.")
    check_gradients(learner, ours(gradients, config["n_ctx"]))
    k = learner.encoder.trunk.blocks[0].attn.qkv.weight.grad.chunk(3)[1]
    theirs = gradients["model/h0/attn/k_proj"].flatten(0, 1)
    assert (k - theirs).abs().max() <= 1e-5 * theirs.abs().max() + 1e-7


@pytest.mark.parametrize("size", ["small", "medium", "large"])
def test_published_names_are_ours_both_ways(size):
    published = {key: torch.zeros(()).expand(shape) for key, shape in keys(f"imagegpt_hf_{size}").items()}
    found, left = igpt.ours(published)
    width = published["transformer.ln_f.weight"].shape[0]
    depth = sum(key.endswith("ln_1.weight") for key in published)
    with torch.device("meta"):
        trunk = timm.create_model(f"igpt_{size}_patch1_32", num_classes=0)
    shapes = {key.removeprefix("encoder.trunk."): tuple(value.shape) for key, value in found.items() if key != igpt.LAST}
    computed = ("patch_embed.colours", "patch_embed.mean", "patch_embed.std")
    assert not left and shapes == {key: tuple(value.shape) for key, value in trunk.state_dict().items() if key not in computed}
    assert (trunk.embed_dim, len(trunk.blocks)) == (width, depth)
    assert {key: tuple(value.shape) for key, value in igpt.theirs(found).items()} == keys(f"imagegpt_hf_{size}")


def test_it_equals_transformers(tmp_path):
    """A folder of theirs gives our learner with the same logits; what we hand back is what they wrote."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.ImageGPTConfig(vocab_size=17, n_positions=16, n_embd=24, n_layer=2, n_head=3)
    model = transformers.ImageGPTForCausalImageModeling(config).eval()
    with torch.no_grad():
        for name, value in model.named_parameters():
            value.zero_() if name.endswith("bias") else value.normal_(std=0.3)
    model.save_pretrained(tmp_path)
    clusters = torch.rand(16, 3).mul(2).sub(1)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"clusters": clusters.tolist()}))
    learner = load(tmp_path)
    x = pictures(3, 3, (4, 4)).clamp(-1, 1)
    codes = torch.cdist(x.flatten(2).transpose(1, 2), clusters.expand(3, -1, -1)).argmin(-1)
    assert torch.equal(learner.objectives["codes"].target(x), codes)
    with torch.no_grad():
        theirs = model(torch.cat([torch.full((3, 1), 16), codes[:, :-1]], 1)).logits
    mask = learner.draw_mask(x)
    assert_close(learner.predict(x, mask, "codes")["prediction"], theirs, rtol=1e-4, atol=1e-5)
    back = igpt.theirs(learner.state_dict())
    for name, value in model.state_dict().items():
        if name in back:
            assert_close(back.pop(name), value)
    assert not back
    model.transformer.h[0].mlp.c_fc.bias.data.fill_(0.1)
    model.save_pretrained(tmp_path)
    with pytest.raises(Refused, match="no biases"):
        load(tmp_path)
    with pytest.raises(Refused, match="imagegpt"):
        load_encoder(tmp_path)  # which would be shown pictures both ways, as it never was trained


# ------------------------------------------------------------------------------------------------------ its own corners


def small(**words):
    return IGPT(**words).build("igpt_small_patch1_32", (8, 8), width=24, depth=2, heads=2)


def test_the_papers_sizes():
    with torch.device("meta"):
        assert len(timm.create_model("igpt_small_patch1_32").blocks) == 24
    learner = IGPT().build(depth=1)
    trunk = learner.encoder.trunk
    assert (trunk.embed_dim, trunk.blocks[0].attn.num_heads, trunk.pos_embed.shape[1]) == (512, 8, 1025)
    assert not [name for name, _ in learner.named_parameters() if name.endswith("bias")]


def test_nothing_looks_ahead():
    for prefix in (True, False):
        check_leak(case_of(IGPT(prefix=prefix), pictures(4, 3, (8, 8)) / 4 + 0.5, model="igpt_small_patch1_32", patch_size=1, width=24, img_size=(8, 8)))
    check_leak(case_of(IGPT(prefix=False), patch_size=4))


def test_its_numbers_go_where_the_pictures_do():
    learner = small()
    learner.sees((0.4, 0.5, 0.6), (0.2, 0.25, 0.3))
    embed, target = learner.encoder.trunk.patch_embed, learner.objectives["codes"].target
    x = pictures(2, 3, (8, 8))
    codes = target(x)
    assert torch.equal(embed.proj(codes).unflatten(1, (8, 8)), embed(x)) and len(codes.unique()) > 5
    pixels = x * target.std + target.mean
    colours = target.tokenizer.colours[codes].transpose(1, 2).unflatten(2, (8, 8))
    inside = (pixels >= 0) & (pixels <= 1)
    assert ((pixels - colours).abs()[inside] <= 1 / 16 + 1e-6).all()  # half a step of eight levels


def test_palettes():
    assert [len(regular(chans)) for chans in (1, 2, 3, 4, 13)] == [512, 22**2, 512, 4**4, 2**13]
    with pytest.raises(ValueError, match="14 channels"):
        regular(14)
    palette = Palette(regular(3))
    x = palette.colours.T.reshape(1, 3, 32, 16)
    assert torch.equal(palette.codes(x).flatten(), torch.arange(512))
    target = Codes(palette, (1, 1), 3)
    assert_close(target.pictures(target(x), (32, 16)), x)


def test_it_is_drawn_and_handed_on(tmp_path):
    from unmask.visualize.panels import Sheet

    learner = small()
    image = grid(learner, pictures(2, 3, (8, 8)), ["a.png", "b.png"], mean=(0.5,) * 3, std=(0.25,) * 3)
    assert "prediction, painted from codes" in Sheet.of(image).header
    opened = load_encoder("random:igpt_small_patch1_32", img_size=(8, 8))
    assert len(opened.model.patch_embed.colours) == 512 and opened.in_chans == 3
    with pytest.raises(Refused, match="timm has no network 'igpt_small_patch1_32'"):
        export_timm(opened, tmp_path / "folder")
    assert not (tmp_path / "folder").exists()
    with torch.no_grad():
        assert opened.model.forward_features(pictures(1, 3, (8, 8))).shape == (1, 65, 512)


def test_what_does_not_fit_is_refused():
    with pytest.raises(Refused, match="came before"):
        IGPT().build(**SMALL | {"model": "beit_base_patch16_224"}, img_size=(32, 32))
