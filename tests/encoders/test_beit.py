"""The adapter over timm's Beit: golden vectors of visible tokens, and the relative places' index. Its laws: laws/test_encoders.py."""

import pytest
import timm
import torch
from golden_files import check_gradients, names
from torch.testing import assert_close

from unmask.encoders.beit import Beit
from unmask.encoders.build import build, create_trunk
from unmask.mask import Mask
from unmask.testing import pictures

CLOSE = {"rtol": 1e-5, "atol": 2e-5}  # the note's


def halves(ids, N, grid):
    hidden = torch.stack([torch.tensor(sorted(set(range(N)) - set(row))) for row in ids.tolist()])
    return Mask(ids, hidden, grid)


@pytest.mark.golden
@pytest.mark.parametrize("name", names("trunks_beit", "input.visible_ids"))
def test_visible_tokens_equal_the_masked_full_model(golden, name):
    tensors, metadata = golden(name)
    config = metadata["config"]
    own = {key: config[key] for key in ("patch_size", "embed_dim", "depth", "num_heads")} | {"img_size": tuple(config["img_size"])}
    trunk = timm.create_model(config["model"], num_classes=0, **own).eval()
    trunk.load_state_dict({key.removeprefix("weights."): value for key, value in tensors.items() if key.startswith("weights.")})
    encoder, x, ids = Beit(trunk), tensors["input.image"], tensors["input.visible_ids"]
    grid = encoder.grid(x)
    whole, some = encoder(x), encoder(x, halves(ids, grid[0] * grid[1], grid))
    assert_close(torch.cat([whole.prefix, whole.patches], 1), tensors["output.full"], **CLOSE)
    visible = torch.cat([some.prefix, some.patches], 1)
    assert_close(visible, tensors["output.visible"], **CLOSE)
    scalar = (visible * tensors["input.grad_weight"]).sum()
    assert_close(scalar, tensors["output.scalar_for_grad"], rtol=1e-5, atol=1e-4)
    scalar.backward()
    check_gradients(trunk, {key.removeprefix("grad."): value for key, value in tensors.items() if key.startswith("grad.")})


@pytest.mark.golden
@pytest.mark.parametrize("name", names("beit_relpos", "output.index_"))
def test_the_index_of_relative_places(golden, name):
    tensors, _ = golden(name)
    found = 0
    for key, index in tensors.items():
        if key.startswith("output.index_") and index.dim() == 2 and index.shape[0] == index.shape[1]:
            rows, columns = (int(side) for side in key.removeprefix("output.index_").split("x"))
            trunk = create_trunk("beit_base_patch16_224", (rows * 8, columns * 8), 3, 8, 24, 1, 2)
            assert torch.equal(trunk.rel_pos_bias.relative_position_index, index)
            found += 1
    assert found


@torch.no_grad()
@pytest.mark.parametrize("shared", [True, False])
def test_dropping_equals_attention_that_looks_away(shared):
    """With one table for all blocks as with one a block: timm's blocks, with the columns of hidden patches closed."""
    torch.manual_seed(0)
    words = {"use_shared_rel_pos_bias": shared, "use_rel_pos_bias": not shared, "use_fc_norm": False, "use_abs_pos_emb": True}
    trunk = timm.create_model("beit_base_patch16_224", img_size=(32, 48), patch_size=8, embed_dim=24, depth=2, num_heads=2, num_classes=0, **words).eval()
    for value in trunk.parameters():
        value.normal_(std=0.2)
    encoder, x = Beit(trunk, layers=(0,)), pictures(2, 3, (32, 48))
    mask = halves(torch.rand(2, 24).argsort(1)[:, :10], 24, (4, 6))
    closed = torch.nn.functional.pad(mask.map, (1, 0))[:, None, None, :] & ~torch.eye(25, dtype=torch.bool)
    tokens = torch.cat([trunk.cls_token.expand(2, -1, -1), trunk.patch_embed(x)], 1) + trunk.pos_embed
    bias = torch.zeros(closed.shape).masked_fill(closed, -torch.inf) + (trunk.rel_pos_bias() if shared else 0)
    inner = []
    for block in trunk.blocks:
        tokens = block(tokens, shared_rel_pos_bias=bias)
        inner.append(mask.visible(tokens[:, 1:]))
    found = encoder(x, mask)
    assert_close(found.patches, mask.visible(trunk.norm(tokens)[:, 1:]), rtol=1e-4, atol=1e-5)
    assert_close(found.layers[0], inner[0], rtol=1e-4, atol=1e-5)


def test_the_default_table_is_shared_and_starts_at_zero():
    encoder = build("beit_base_patch16_224", (32, 32), 3, 8, width=24, depth=2, heads=3)
    tables = [name for name, _ in encoder.named_parameters() if "bias_table" in name]
    assert tables == ["trunk.rel_pos_bias.relative_position_bias_table"] and not encoder.get_parameter(tables[0]).any()
