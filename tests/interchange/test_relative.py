"""Whole files of BEiT: there and back by their key lists, and by the official code's own numbers."""

import pytest
import timm
import torch
from golden_files import keys, mask_of, names, published
from safetensors.torch import save_file
from torch.testing import assert_close

from unmask.errors import Refused
from unmask.interchange import relative
from unmask.interchange.encoder import load_encoder
from unmask.interchange.published import take
from unmask.load import load
from unmask.methods.beit import BEiT
from unmask.tokenizers.dvae import DVAE

CLOSE = {"rtol": 1e-5, "atol": 2e-6}


def part(tensors, prefix):
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


@pytest.mark.parametrize("name", ["beit_base_patch16_224_pt22k", "beit_base_patch16_224_pt1k_800ep", "beitv2_base_patch16_224_pt1k"])
def test_pre_training_there_and_back(name):
    """Names of a learner, and again those of unilm, but for what its code computes."""
    there = published(name).state
    ours = relative.from_beit(there)
    network = take(published(name)).network
    with torch.device("meta"):
        model = timm.create_model(network.name, **network.kwargs)
    assert {key.removeprefix("encoder.trunk.") for key in ours if key.startswith("encoder.trunk.")} == model.state_dict().keys()
    assert relative.to_beit(ours).keys() == {key for key in there if not key.endswith("relative_position_index")}


@pytest.mark.golden
@pytest.mark.parametrize("name", names("beit", "output.logits_all", "microsoft/unilm@"))
def test_an_official_file_gives_the_official_answers(golden, name, tmp_path):
    tensors, metadata = golden(name)
    config = metadata["config"]
    torch.save({"model": part(tensors, "weights.")}, tmp_path / "beit.pth")
    said, size = [], tuple(config["img_size"])
    opened = load_encoder(tmp_path / "beit.pth", say=said.append)
    assert (opened.model.blocks[0].attn.num_heads, opened.img_size) == (config["num_heads"], size) and any("0.5 assumed" in line for line in said)
    learner = BEiT(tokenizer=str(tokenizer_file(tmp_path, config["vocab_size"]))).build(opened.model).eval()
    learner.load_state_dict(relative.from_beit(part(tensors, "weights.")), strict=False)
    grid = [side // config["patch_size"] for side in size]
    mask = mask_of(tensors["input.mask"].unflatten(1, grid))
    assert_close(learner.predict(tensors["input.x"], mask, "codes")["prediction"][mask.weight > 0], tensors["output.logits_masked"], **CLOSE)


def tokenizer_file(folder, vocabulary):
    """DALL-E's names of a small encoder."""
    torch.manual_seed(0)
    state = DVAE(3, hidden=4, blocks=1, vocabulary=vocabulary, first=8).encoder.state_dict()
    name = {"weight": "w", "bias": "b"}
    save_file({f"{key.rpartition('.')[0]}.{name[key.rpartition('.')[2]]}": value for key, value in state.items()}, folder / "dalle.safetensors")
    return folder / "dalle.safetensors"


def test_a_whole_beit_opens_with_its_tokenizer(tmp_path):
    tokenizer = tokenizer_file(tmp_path, 6)
    learner = BEiT(tokenizer=str(tokenizer)).build("beit_base_patch16_224", (32, 32), 3, 8, width=24, depth=2, heads=3).eval()
    official = relative.to_beit(learner.state_dict())
    assert {"lm_head.weight", "mask_token", "rel_pos_bias.relative_position_bias_table", "blocks.1.attn.q_bias"} <= official.keys()
    torch.save({"model": official}, tmp_path / "beit.pth")
    again = load(f"{tmp_path}/beit.pth:tokenizer={tokenizer}")
    learner.sees((0.5,) * 3, (0.5,) * 3)
    assert again.state_dict().keys() == learner.state_dict().keys()
    assert [key for key, value in again.state_dict().items() if not torch.equal(value, learner.state_dict()[key])] == []
    with pytest.raises(Refused, match="tokenizer=FILE"):
        load(tmp_path / "beit.pth")
    (tmp_path / "other").mkdir()
    with pytest.raises(Refused, match="another one"):
        load(f"{tmp_path}/beit.pth:tokenizer={tokenizer_file(tmp_path / 'other', 7)}")


def test_other_families_are_no_whole_files(tmp_path):
    for name, says in (("eva02_S_pt_p14", "EVA"), ("data2vec_vision_base", "names codes"), ("simmim_pretrain_swin_base_img192_window6", "Swin")):
        torch.save({"model": {key: torch.zeros(()).expand(shape) for key, shape in keys(name).items()}}, tmp_path / f"{name}.pth")
        with pytest.raises(Refused, match=says) as refusal:
            load(tmp_path / f"{name}.pth")
        assert "\n" not in str(refusal.value)
