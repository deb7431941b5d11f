"""MILAN against a short reference written from the paper and the facts of zejiangh/MILAN: law of the masks, decoder, loss, gradients."""

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from unmask.errors import Refused
from unmask.mask import Mask
from unmask.masking import Attended
from unmask.methods.milan import MILAN
from unmask.testing import SMALL, case_of, check_leak, pictures

TEACHER = "random:vit_tiny_patch16_224"
CLOSE = {"rtol": 1e-5, "atol": 2e-6}


def learner_of(**more):
    torch.manual_seed(0)
    learner = MILAN(teacher=TEACHER, **more).build(**SMALL, img_size=(32, 48))
    with torch.no_grad():
        for weight in learner.parameters():  # no norm is 1 and no bias 0, so that a wrong branch shows
            if weight.requires_grad:
                weight.add_(torch.randn_like(weight) * 0.05)
    return learner


def reference(learner, x, mask):
    """The decoder and the loss over whole sequences in raster order, class token first, with plain softmax."""
    decoder, target = learner.objectives["features"].decoder, learner.objectives["features"].target
    features, N = learner.encoder(x, mask), mask.map.shape[1]
    order = torch.cat([mask.visible_ids, mask.masked_ids], 1)
    back = order.argsort(1).unsqueeze(-1)
    sequence = torch.cat([decoder.embed(features.patches), decoder.mask_token.expand(len(x), mask.masked_ids.shape[1], -1)], 1)
    sequence = torch.cat([decoder.embed(features.prefix), sequence.gather(1, back.expand(-1, -1, sequence.shape[-1])) + decoder.places], 1)  # (B, 1 + N, width)
    hidden = F.pad(mask.map, (1, 0))
    heads, width = decoder.blocks[0].attn.heads, sequence.shape[-1]
    for block in decoder.blocks:
        keys = torch.where(hidden.unsqueeze(-1), block.norm1(sequence), sequence)  # what is visible goes in without a norm
        q, (k, v) = block.attn.q(keys), block.attn.kv(keys).chunk(2, -1)
        q, k, v = (some.reshape(len(x), N + 1, heads, -1).transpose(1, 2) for some in (q, k, v))
        said = (q @ k.mT / (width // heads) ** 0.5).softmax(-1) @ v
        changed = sequence + block.attn.proj(said.transpose(1, 2).reshape(len(x), N + 1, width))
        changed = changed + block.mlp.fc2(F.gelu(block.mlp.fc1(block.norm2(changed))))
        sequence = torch.where(hidden.unsqueeze(-1), changed, sequence)
    prediction = F.normalize(decoder.predict(decoder.norm(sequence)), dim=-1)
    with torch.no_grad():
        truth = F.normalize(target.outside[0].forward_features(target.sight(x)), dim=-1)
    return (2 - 2 * (prediction * truth).sum(-1)).mean()  # over masked, visible and class token alike


def test_loss_and_gradients_equal_the_reference():
    learner, x = learner_of(), pictures(3, 3, (32, 48))
    mask = learner.draw_mask(x, torch.rand(3, 24))
    ours, theirs = learner(x, mask=mask)["loss"], reference(learner, x, mask)
    assert_close(ours, theirs, **CLOSE)
    trained = [weight for weight in learner.parameters() if weight.requires_grad]
    for mine, wanted in zip(torch.autograd.grad(ours, trained), torch.autograd.grad(theirs, trained), strict=True):
        assert_close(mine, wanted, rtol=1e-4, atol=1e-6)


def test_the_mask_follows_the_teachers_class_token():
    """The scores are timm's own softmax of the last block, the class token's row, mean of the heads; their answer serves the truth too."""
    learner, x = learner_of(), pictures(2, 3, (32, 48))
    target, kept = learner.objectives["features"].target, []
    block = target.outside[0].blocks[-1].attn
    scores = target.attention(x)
    block.fused_attn = False
    hook = block.attn_drop.register_forward_hook(lambda module, inputs, output: kept.append(output))
    tokens = target.outside[0].forward_features(target.sight(x))
    hook.remove()
    assert_close(scores, kept[0][:, :, 0, 1:].mean(1), **CLOSE)
    assert_close(target(x), tokens[:, 1:], **CLOSE)
    looks = []
    target.outside[0].blocks[0].register_forward_pre_hook(lambda *given: looks.append(1))
    learner(pictures(2, 3, (32, 48), seed=1), noise=torch.rand(2, 24))
    assert len(looks) == 1, "mask, truth and class token are told in one look"


def test_visible_patches_are_drawn_as_multinomial_draws_them():
    """The official code: torch.multinomial of the attention, without putting back; the first ones stay."""
    torch.manual_seed(0)
    shares, draws = torch.tensor([0.4, 0.25, 0.15, 0.1, 0.06, 0.04]), 30_000
    theirs = torch.multinomial(shares.expand(draws, -1), 6)
    ours = Attended(0.5)((2, 3), torch.rand(draws, 6), shares.expand(draws, -1))
    assert ours.visible_ids.shape == (draws, 3)
    for place in range(3):  # the law of the first, second and third patch that is drawn
        first, second = (torch.bincount(ids[:, place], minlength=6) / draws for ids in (theirs, ours.visible_ids))
        assert (first - second).abs().max() < 0.012
    never = Attended(0.5)((2, 3), torch.rand(2000, 6), torch.tensor([1.0, 1.0, 1.0, 0, 0, 0]).expand(2000, -1))
    assert never.visible_ids.max() == 2, "what is never looked at stays only where nothing else is left"


def test_the_papers_numbers():
    learner = MILAN(teacher=TEACHER).build("vit_base_patch16_224", (32, 32), depth=1)
    decoder = learner.objectives["features"].decoder
    assert (decoder.mask_token.shape[-1], len(decoder.blocks), decoder.blocks[0].attn.heads) == (512, 8, 16)
    assert MILAN.paper.base_lr * MILAN.paper.batch_size / 256 == pytest.approx(2.4e-3)


@pytest.mark.parametrize("teacher", ["vit_base_patch16_gap_224", "vit_small_patch16_rope_224", "beit_base_patch16_224", "vit_small_patch14_reg4_dinov2"])
def test_teachers_with_and_without_a_class_token(teacher):
    case = case_of(MILAN(teacher=f"random:{teacher}"), patch_size=8)
    check_leak(case)
    learner = case.learner()
    assert learner.scores(case.x).shape == (4, 16) and learner(case.x)["loss"].isfinite()
    assert learner.objectives["features"].also.whole == ("gap" not in teacher)


def test_a_student_without_a_class_token():
    check_leak(case_of(MILAN(teacher=TEACHER), model="vit_medium_patch16_gap_256"))


def test_the_loss_of_a_right_answer_is_nothing():
    learner, x = learner_of(), pictures(2, 3, (32, 48))
    part, mask = learner.objectives["features"], learner.draw_mask(x, torch.rand(2, 24))
    truth = mask.masked(part.target(x))
    assert part.loss(3 * truth, truth).abs().max() < 1e-5 and part.loss(-truth, truth).max() == pytest.approx(4)
    assert part.weigh(mask) == pytest.approx(18 / 25)
    assert isinstance(mask, Mask) and mask.visible_ids.shape[1] == 6


def test_what_does_not_fit_is_refused():
    with pytest.raises(Refused, match=r"--method\.teacher ENCODER"):
        MILAN().build(**SMALL, img_size=(32, 32))
    with pytest.raises(Refused, match="SwinTransformer: choose a vision transformer"):
        MILAN(teacher="random:swin_tiny_patch4_window7_224").build(**SMALL, img_size=(32, 32))
    with pytest.raises(Refused, match="decoder_heads 5"):
        MILAN(teacher=TEACHER, decoder_heads=5).build(**SMALL, img_size=(32, 32))
