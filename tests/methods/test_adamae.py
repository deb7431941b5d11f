"""AdaMAE against the official code's numbers: chances, predictions, both losses, gradients; the law of its draws.

The official input is a clip, whose cubes of two frames are laid out here as patches of one tall picture: the same numbers, in the same order.
"""

import pytest
import timm
import torch
from golden_files import check_gradients, names
from torch.testing import assert_close

from unmask.errors import Refused
from unmask.mask import Mask
from unmask.masking import Attended
from unmask.methods.adamae import AdaMAE
from unmask.model import Step
from unmask.targets.pixels import Pixels
from unmask.testing import SMALL, pictures

OFFICIAL = "wgcban/adamae@"
TRUNK, PIXELS = "encoder.trunk.", "objectives.pixels."
ROWS = (
    ("encoder.pos_embed_probs", PIXELS + "also.places"),
    ("encoder.get_token_probs.0.", PIXELS + "also.block."),
    ("encoder.get_token_probs.1.", PIXELS + "also.logit."),
    ("encoder_to_decoder.", PIXELS + "decoder.embed."),
    ("decoder.head.", PIXELS + "decoder.predict."),
    ("decoder.", PIXELS + "decoder."),
    ("mask_token", PIXELS + "decoder.mask_token"),
    ("encoder.", TRUNK),
)


def part(tensors, prefix):
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


def tall(video, patch):
    """A clip (B, C, T, H, W) as one picture whose patches are its cubes of two frames: (B, C, T·H, W), raster order of (t, h, w)."""
    cubes = video.unflatten(3, (-1, patch)).unflatten(2, (-1, 2))  # (B, C, t, 2, h, p, W)
    return cubes.transpose(3, 4).flatten(2, 5)


def ours(state, patch):
    found = {}
    for key, value in state.items():
        if key == "encoder.get_token_probs.1.bias":  # which the soft-max does not see, and ours does not have
            continue
        theirs, name = next(row for row in ROWS if key.startswith(row[0]))
        if key.endswith("attn.q_bias"):
            value = torch.cat([value, torch.zeros_like(value), state[key.replace("q_bias", "v_bias")]])
        elif key.startswith("decoder.head."):  # (frame, row, column, channel) to (channel, frame, row, column)
            value = value.unflatten(0, (2, patch, patch, 3)).movedim(3, 0).flatten(0, 3)
        elif value.dim() == 5:
            value = value.flatten(2, 3)  # (D, C, 2·p, p)
        if not key.endswith("v_bias"):
            found[name + key[len(theirs) :].replace("q_bias", "qkv.bias")] = value
    return found


def sines(count, width):
    """The official table of places along one axis, sines and cosines in turn."""
    angles = torch.arange(count).double().unsqueeze(1) / 10000 ** (2 * (torch.arange(width) // 2) / width)
    return torch.where(torch.arange(width) % 2 == 0, angles.sin(), angles.cos()).float().unsqueeze(0)


@pytest.mark.golden
@pytest.mark.parametrize("name", names("adamae", "output.prob", OFFICIAL))
def test_chances_losses_and_gradients_equal_the_official_code(golden, name):
    tensors, metadata = golden(name)
    config, p = metadata["config"], metadata["config"]["patch_size"]
    x = tall(tensors["input.video"], p)
    words = {"embed_dim": config["encoder_embed_dim"], "depth": config["encoder_depth"], "num_heads": config["encoder_num_heads"], "patch_size": (2 * p, p)}
    words |= {"class_token": False, "global_pool": "avg", "fc_norm": False, "num_classes": 0, "dynamic_img_size": True, "img_size": tuple(x.shape[2:])}
    sizes = {"decoder_width": config["decoder_embed_dim"], "decoder_depth": config["decoder_depth"], "decoder_heads": config["decoder_num_heads"]}
    learner = AdaMAE(mask_ratio=config["mask_ratio"], dropout=0, **sizes).build(timm.create_model("vit_base_patch16_224", **words))
    weights = ours(part(tensors, "weights."), p)
    count = tensors["output.prob"].shape[1]
    missing, unexpected = learner.load_state_dict(weights | {TRUNK + "pos_embed": sines(count, words["embed_dim"])}, strict=False)
    assert not unexpected and not missing
    learner.sees((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    predict = learner.objectives["pixels"]
    predict.decoder.places.copy_(sines(count, sizes["decoder_width"]))

    visible, hidden = tensors["input.visible_idx"], tensors["output.mask"].bool()
    mask = Mask(visible, hidden.int().argsort(dim=1, descending=True, stable=True)[:, : int(hidden[0].sum())], learner.encoder.own_grid)
    assert torch.equal(mask.map, hidden) and Attended(config["mask_ratio"]).keep(count) == visible.shape[1]
    assert_close(predict.also.chances(x), tensors["output.prob"], rtol=1e-5, atol=1e-6)
    found = learner.predict(x, mask)
    for mine, theirs in (("prediction", "output.pred_first24"), ("truth", "output.target_first24")):
        values = found[mine].unflatten(-1, (3, 2, p, p)).movedim(2, -1).flatten(2)[..., :24]
        assert_close(values, tensors[theirs], rtol=1e-5, atol=2e-5)
    loss = learner(x, mask=mask)["loss"]
    reconstruction = predict.loss(found["prediction"], found["truth"]).mean()
    assert_close(reconstruction, tensors["output.loss_reconstruction"], rtol=1e-6, atol=1e-6)
    assert_close(loss.detach() - reconstruction, tensors["output.loss_sampling"], rtol=1e-3, atol=1e-7)
    assert_close(loss, tensors["output.loss"], rtol=1e-6, atol=1e-6)
    loss.backward()
    check_gradients(learner, ours(part(tensors, "grad."), p), 2e-5)


@pytest.mark.golden
@pytest.mark.parametrize("name", names("adamae", "law.p", OFFICIAL))
def test_patches_are_drawn_as_the_official_call_draws_them(golden, name):
    """One after the other without putting back: a patch is shown as often as exact enumeration says."""
    tensors, _ = golden(name)
    chances, kept, draws = tensors["law.p"], int(tensors["law.k"]), 100_000
    N = len(chances)
    noise = torch.rand(draws, N, generator=torch.Generator().manual_seed(0))
    mask = Attended((N - kept) / N)((1, N), noise, chances.expand(draws, -1))
    assert mask.visible_ids.shape[1] == kept
    often = torch.zeros(N).scatter_add(0, mask.visible_ids.flatten(), torch.ones(mask.visible_ids.numel())) / draws
    assert_close(often, tensors["law.inclusion_exact"].float(), rtol=0, atol=7e-3)
    first = torch.bincount(mask.visible_ids[:, 0], minlength=N) / draws
    assert_close(first, chances.float(), rtol=0, atol=7e-3)


def learner(**settings):
    torch.manual_seed(0)
    return AdaMAE(dropout=0, **settings).build(**SMALL, img_size=(32, 32))


def test_what_is_hard_to_predict_is_shown_more_often():
    """The sampling network's loss alone raises the chances of hidden patches with large errors, and lowers the others'."""
    model, x = learner(sampling=1.0), pictures(8)
    sampler = model.objectives["pixels"].also
    before, hard = sampler.shown(x), torch.zeros(8, 16)
    hard[:, :4] = 1.0  # the first row of patches
    mask = Mask(torch.arange(8, 16).expand(8, -1), torch.arange(8).expand(8, -1), (4, 4))
    step = torch.optim.SGD(sampler.parameters(), lr=0.05)
    for _ in range(5):
        step.zero_grad()
        loss = sampler(Step(None, mask, x, None, model.encoder, None, mask.masked(hard)))
        loss.backward()
        step.step()
    after = sampler.shown(x)
    assert_close(after.sum(1), torch.ones(8))
    assert after[:, :4].sum(1).mean() > 1.2 * before[:, :4].sum(1).mean()


def test_a_step_teaches_the_chances_that_it_drew_by():
    """The official code has one answer of the sampling network for both, so what dropout leaves must be the same when it is asked again."""
    torch.manual_seed(0)
    model, x = AdaMAE(dropout=0.5).build(**SMALL, img_size=(32, 32)).train(), pictures(4)
    sampler = model.objectives["pixels"].also
    drawn_by, taught = [], []
    ask = sampler.chances
    sampler.chances = lambda *given: (drawn_by if not torch.is_grad_enabled() else taught).append(ask(*given)) or (drawn_by if not torch.is_grad_enabled() else taught)[-1]
    for _ in range(2):
        model(x, mask=model.draw_mask(x, torch.rand(4, 16)))
    assert all(torch.equal(*pair) for pair in zip(drawn_by, taught, strict=True)) and not torch.allclose(*taught)
    model.eval()
    model.draw_mask(x, torch.rand(4, 16))
    assert sampler.left is None and torch.equal(drawn_by[-1], sampler.shown(x)), "without dropout, while nothing learns"


def test_masks_follow_the_pictures_and_the_chances():
    model, x = learner(mask_ratio=0.5), pictures(2)
    sampler, noise = model.objectives["pixels"].also, torch.rand(2, 16)
    assert torch.equal(model.draw_mask(x, noise).visible_ids, model.draw_mask(x, noise).visible_ids)
    with torch.no_grad():
        sampler.logit.weight.zero_()
        assert_close(sampler.shown(x), torch.full((2, 16), 1 / 16))
    assert torch.equal(model.draw_mask(x, noise).visible_ids, Attended(0.5)((4, 4), noise).visible_ids)  # all alike: random masking
    assert torch.equal(model.draw_mask(x[1:], noise, rows=torch.tensor([1])).visible_ids, model.draw_mask(x, noise).visible_ids[1:])


def test_a_chance_that_is_cut_has_no_gradient():
    model, x = learner(), pictures(2)
    sampler = model.objectives["pixels"].also
    with torch.no_grad():
        sampler.logit.weight.mul_(1e4)  # one patch has all
    mask = model.draw_mask(x, torch.rand(2, 16))
    assert (mask.masked(sampler.shown(x)) < 1e-7).all()
    loss = sampler(Step(None, mask, x, None, model.encoder, None, torch.ones(mask.masked_ids.shape)))
    loss.backward()
    assert loss.isfinite() and not sampler.logit.weight.grad.any()


def test_the_paper_and_what_is_refused():
    method = AdaMAE()
    assert (method.sampling, method.decoder_depth, method.paper.betas) == (1e-4, 4, (0.9, 0.95))
    with torch.device("meta"):
        built = method.build()
    decoder = built.objectives["pixels"].decoder
    assert (decoder.mask_token.shape[-1], len(decoder.blocks), decoder.blocks[0].attn.num_heads) == (384, 4, 6) and decoder.embed.bias is None
    assert not learner().objectives["pixels"].also.places.any()
    with pytest.raises(Refused, match="8 heads divide"):
        AdaMAE().build("vit_tiny_patch16_224", (32, 32), width=36, heads=3)
    with pytest.raises(Refused, match="plain vision transformer"):
        AdaMAE().build("convnextv2_atto", (64, 64))
    with pytest.raises(ValueError, match="dropout"):
        AdaMAE(dropout=1.0)


def test_each_channel_of_a_patch_is_normalised_by_itself():
    x = pictures(2, 3, (16, 16))
    truth = Pixels((8, 8), by_channel="unbiased")(x).unflatten(-1, (3, 64))
    assert_close(truth.mean(-1), torch.zeros(2, 4, 3), rtol=0, atol=1e-5)
    assert_close(truth.std(-1), torch.ones(2, 4, 3), rtol=1e-4, atol=0)
