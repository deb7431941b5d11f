"""A run by its paper's own names: the published key lists, and the same features when it is opened as a published file."""

import pytest
import torch
from golden_files import keys
from timm.models.eva import Eva
from timm.models.swin_transformer import SwinTransformer
from vocabularies import vocabulary

from unmask import api
from unmask.api.give import method_of
from unmask.errors import Refused
from unmask.interchange.foreign import encoder_of
from unmask.interchange.papers_export import WRITERS, export_paper
from unmask.interchange.witness import Witness
from unmask.methods import find

SMALL = {"img_size": (32, 32), "width": 64, "depth": 2, "heads": 1, "patch_size": 8}
BEIT = SMALL | {"model": "beit_base_patch16_224"}
RUNS = {  # method: its own settings, and a small network like the paper's
    "mae": ({}, SMALL | {"model": "vit_base_patch16_224"}),
    "crossmae": ({"decoder_depth": 2}, SMALL | {"model": "vit_base_patch16_224"}),
    "pixio": ({"decoder_depth": 2, "cell": 2}, SMALL | {"model": "vit_base_patch16_224"}),
    "bootmae": ({}, SMALL | {"model": "vit_base_patch16_224"}),
    "maskfeat": ({}, SMALL | {"model": "vit_base_patch16_224"}),
    "dino": ({"prototypes": 24, "hidden": 16, "bottleneck": 8}, SMALL | {"model": "vit_base_patch16_224"}),
    "ibot": ({"prototypes": 24, "hidden": 16, "bottleneck": 8, "shared_head": False}, SMALL | {"model": "vit_base_patch16_224"}),
    "dinov2": ({"prototypes": 24, "hidden": 16, "bottleneck": 8, "registers": 2}, SMALL | {"model": "vit_small_patch14_dinov2"}),
    "mocov3": ({"hidden": 16, "out": 8}, SMALL | {"model": "vit_base_patch16_224"}),
    "cae": ({"regressor": 2, "decoder": 1, "tokenizer": vocabulary}, SMALL | {"model": "deit3_base_patch16_224"}),
    "beit": ({"tokenizer": vocabulary}, BEIT),
    "beit2": ({"tokenizer": vocabulary}, BEIT),
    "simmim": ({}, BEIT),
    "data2vec": ({}, BEIT),
    "hiera_mae": ({}, {"model": "hiera_tiny_224", "img_size": (64, 96), "width": 24}),
    "fcmae": ({}, {"model": "convnextv2_atto", "img_size": (64, 96), "width": 8}),
    "eva": ({"teacher": "random:vit_tiny_patch16_224"}, SMALL | {"model": "eva02_base_patch14_224", "patch_size": 14, "img_size": (56, 56)}),
}


def made(method, own, network):
    """A learner with moved weights (fresh ones are often zeros), and its encoder as a run keeps it."""
    own = {key: value() if callable(value) else value for key, value in own.items()}
    torch.manual_seed(0)
    learner = find(method)(**own).build(**network).eval()
    with torch.no_grad():
        for name, weight in learner.named_parameters():
            if weight.requires_grad and "mask_token" not in name:
                weight.add_(0.02 * torch.randn_like(weight))
    return learner, encoder_of(learner.handed().trunk, "run", {"mean": (0.5,) * 3, "std": (0.5,) * 3})


@pytest.mark.parametrize("method", WRITERS)
def test_it_opens_again_by_its_papers_names(method, tmp_path):
    learner, encoder = made(method, *RUNS[method])
    done = export_paper(learner.state_dict(), learner.encoder, method, encoder, tmp_path / "x" / "checkpoint.pth", Witness.of(encoder))
    assert done.difference < 1e-5 and [path.name for path in (tmp_path / "x").iterdir()] == ["checkpoint.pth"]
    found = torch.load(tmp_path / "x" / "checkpoint.pth", weights_only=True)
    assert list(found) == [WRITERS[method][0]]


@pytest.mark.parametrize(
    "method, network, published",
    [
        ("simmim", {"model": "beit_base_patch16_224"}, "simmim_pretrain_vit_base_img224_800ep"),
        ("data2vec", {"model": "beit_base_patch16_224"}, "data2vec_vision_base"),
        ("maskfeat", {"model": "vit_base_patch16_224"}, "maskfeat_in1k_VIT_B_MaskFeat_PT"),
        ("eva", {"model": "eva02_base_patch14_224"}, "eva02_B_pt_p14"),
        ("eva", {"model": "eva02_small_patch14_224"}, "eva02_S_pt_p14"),
    ],
)
def test_names_and_shapes_are_the_published_ones(method, network, published):
    """But for tables that the official code computes, and layers of networks that ours lacks; a teacher's width is its own."""
    own = {"teacher": "random:vit_tiny_patch16_224"} if method == "eva" else {"layer_scale": 0.1} if method == "data2vec" else {}
    with torch.device("meta"):
        learner = find(method)(**own).build(**network) if method != "eva" else None
    learner = learner or find(method)(**own).build(**network)
    computed = ("relative_position_index", "freqs_cos", "freqs_sin", "hogs.0.weight_x", "hogs.0.weight_y")
    wanted = {key: shape for key, shape in keys(published).items() if not key.endswith(computed)}
    shapes = {key: tuple(value.shape) for key, value in WRITERS[method][1](learner.state_dict(), learner.encoder).items()}
    width = {"lm_head.weight", "lm_head.bias"} if method == "eva" else set()
    assert {key: shape for key, shape in shapes.items() if key not in width} == {key: shape for key, shape in wanted.items() if key not in width}
    assert not width or isinstance(learner.encoder.trunk, Eva)


def test_swin_merges_patches_where_the_papers_code_does():
    trunk = SwinTransformer(192, embed_dim=128, depths=(2, 2, 18, 2), num_heads=(4, 8, 16, 32), window_size=6, num_classes=0)
    learner = find("simmim")().build(trunk)
    wanted = {key: shape for key, shape in keys("simmim_pretrain_swin_base_img192_window6").items() if not key.endswith(("relative_position_index", "attn_mask"))}
    assert {key: tuple(value.shape) for key, value in WRITERS["simmim"][1](learner.state_dict(), learner.encoder).items()} == wanted


def test_a_network_that_the_papers_code_has_not_is_refused(tmp_path):
    learner, encoder = made("eva", {"teacher": "random:vit_tiny_patch16_224"}, SMALL | {"model": "vit_base_patch16_224"})
    with pytest.raises(Refused, match="own code has no VisionTransformer"):
        export_paper(learner.state_dict(), learner.encoder, "eva", encoder, tmp_path / "of" / "it" / "x.pth", Witness.of(encoder))
    assert not list(tmp_path.iterdir())


def test_what_is_no_run_of_a_paper_is_refused(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("method: my_method.py:Mine\n")
    with pytest.raises(Refused, match="is a run of my_method"):
        method_of(tmp_path / "run")
    with pytest.raises(Refused, match="is no run"):
        method_of("timm:vit_tiny_patch16_224")
    for more, said in (({"img_size": (64, 64)}, "keeps the run's own size"), ({"with_decoder": True}, "for --to hf")):
        with pytest.raises(Refused, match=said):
            api.export("timm:vit_tiny_patch16_224", tmp_path / "x.pth", to="paper", **more)
    assert not (tmp_path / "x.pth").exists()
