"""The contract of a method: a new one joins by a row of `METHODS`. Sketches stand for the neighbours to come."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as F
from vocabularies import LEARNERS, vocabulary

from unmask.methods.adamae import AdaMAE
from unmask.methods.aim import AIM
from unmask.methods.beit import BEiT
from unmask.methods.beit2 import BEiT2
from unmask.methods.bootmae import BootMAE
from unmask.methods.cae import CAE
from unmask.methods.crossmae import CrossMAE
from unmask.methods.dae import DAE
from unmask.methods.data2vec import Data2Vec
from unmask.methods.data2vec2 import Data2Vec2
from unmask.methods.dino import DINO
from unmask.methods.dinov2 import DINOv2
from unmask.methods.distill import Distill
from unmask.methods.eva import EVA
from unmask.methods.fcmae import FCMAE
from unmask.methods.hiera_mae import HieraMAE
from unmask.methods.ibot import IBOT
from unmask.methods.igpt import IGPT
from unmask.methods.ijepa import IJEPA
from unmask.methods.mae import MAE
from unmask.methods.mae_ct import MAECT
from unmask.methods.mae_lite import MAELite
from unmask.methods.maskfeat import MaskFeat
from unmask.methods.milan import MILAN
from unmask.methods.mocov3 import MoCoV3
from unmask.methods.modern_mae import ModernMAE
from unmask.methods.pixio import Pixio
from unmask.methods.simclr import SimCLR
from unmask.methods.simmim import SimMIM
from unmask.testing import (
    Case,
    case_of,
    check_gradients,
    check_graph,
    check_leak,
    check_learning,
    check_method,
    check_processes,
    check_saving,
    pictures,
)
from unmask.text import Words

METHODS = {  # the method, its patch, views a sample, local views a sample
    "mae": (MAE(), 8, 1, 0),
    "mae, raw pixels, a moving ratio": (MAE(norm_pix=False, mask_ratio=".4-.8"), 4, 1, 0),
    "simmim": (SimMIM(cell=16, drop_path=0), 8, 1, 0),
    "maskfeat": (MaskFeat(), 8, 1, 0),
    "mae, HOG": (MAE(target="hog"), 8, 1, 0),
    "eva": (EVA(teacher="random:vit_tiny_patch16_224"), 8, 1, 0),
    "data2vec": (Data2Vec(drop_path=0, attention_dropout=0), 4, 1, 0),
    "ijepa": (IJEPA(), 4, 1, 0),
    "beit": (BEiT(drop_path=0), 8, 1, 0),
    "beit2": (BEiT2(drop_path=0), 8, 1, 0),
    "crossmae": (CrossMAE(decoder_depth=2), 4, 1, 0),
    "pixio": (Pixio(decoder_depth=2, cell=2, cls_tokens=3), 4, 1, 0),
    "aim": (AIM(), 4, 1, 0),
    "bootmae": (BootMAE(), 4, 1, 0),
    "igpt": (IGPT(), 4, 1, 0),
    "dae": (DAE(), 8, 1, 0),
    "cae": (CAE(regressor=2, decoder=1, drop_path=0), 8, 1, 0),
    "milan": (MILAN(teacher="random:vit_tiny_patch16_224"), 8, 1, 0),
    "hiera_mae": (HieraMAE(), 1, 1, 0),
    "fcmae": (FCMAE(), 1, 1, 0),
    "adamae": (AdaMAE(dropout=0), 8, 1, 0),
    "mae, Hiera": (MAE(), 1, 1, 0),
    "simmim, ConvNeXt": (SimMIM(cell=8, norm_pix=True, drop_path=0), 1, 1, 0),
    "ibot": (IBOT(prototypes=64, hidden=64, bottleneck=32, drop_path=0, momentum=0.99), 4, 2, 3),
    "dino": (DINO(prototypes=64, hidden=64, bottleneck=32, drop_path=0, momentum=0.99), 8, 2, 3),
    "dinov2": (DINOv2(prototypes=64, hidden=64, bottleneck=32, drop_path=0, momentum=0.99), 4, 2, 3),
    "dinov2, Sinkhorn": (DINOv2(prototypes=64, patch_prototypes=48, hidden=64, bottleneck=32, shared_head=False, registers=2, centring="sinkhorn", koleo=0, drop_path=0, momentum=0.99), 4, 2, 3),
    "mae_ct": (MAECT(hidden=32, out=16, queue=24, topk=3, head_share=0.02), 8, 2, 0),
    "mae_ct, joint": (MAECT(joint=True, hidden=32, out=16, queue=24, topk=3), 8, 2, 0),
    "mae_lite": (MAELite(teacher="random:vit_tiny_patch16_224"), 8, 1, 0),
    "mae_lite, not decoupled": (MAELite(teacher="random:vit_tiny_patch16_224", decoupled=False, features=0.5), 8, 1, 0),
    "distill": (Distill(teacher="random:vit_tiny_patch16_224"), 8, 1, 0),
    "data2vec2": (Data2Vec2(masks=3, decoder_noise=0), 8, 1, 0),
    "beit, on Beit": (BEiT(drop_path=0), 8, 1, 0),
    "data2vec, on Beit": (Data2Vec(norm="instance", drop_path=0, attention_dropout=0), 8, 1, 0),
    "eva, on EVA-02": (EVA(teacher="random:vit_tiny_patch16_224"), 8, 1, 0),
    "data2vec2, on its own": (Data2Vec2(masks=2, decoder_noise=0), 8, 1, 0),
    "modern_mae": (ModernMAE(), 4, 1, 0),
    "modern_mae, captions": (ModernMAE(target="both", teacher="random:vit_tiny_patch16_224", text="own", text_length=6, text_depth=1, embedding=16), 4, 1, 0),
    "mocov3": (MoCoV3(hidden=32, out=16), 8, 2, 0),
    "simclr": (SimCLR(out=16, temperature=0.5), 8, 2, 0),
}
STAGES = {"depth": None, "heads": None}
NETWORKS = {  # methods that want another network than `SMALL`
    "hiera_mae": {"model": "hiera_tiny_224", "width": 24} | STAGES,
    "fcmae": {"model": "convnextv2_atto", "width": 8} | STAGES,
    "mae, Hiera": {"model": "hiera_tiny_224", "width": 24} | STAGES,
    "simmim, ConvNeXt": {"model": "convnextv2_atto", "width": 8} | STAGES,
    "beit, on Beit": {"model": "beit_base_patch16_224"},
    "data2vec, on Beit": {"model": "beit_base_patch16_224"},
    "eva, on EVA-02": {"model": "eva02_base_patch14_224"},
    "data2vec2, on its own": {"model": "data2vec2_tiny_patch16_224"},
    "modern_mae": {"model": "vit_small_plus_patch16_dinov3"},
    "modern_mae, captions": {"model": "vit_small_plus_patch16_dinov3", "vocabulary": ["a", "dog", "cat", "hill"]},
}
CODED = {"beit", "beit, on Beit", "beit2", "cae"}  # methods that predict the codes of a tokenizer
CAPTIONED = {"modern_mae, captions"}  # methods that are given sentences as well
SAID = ["a dog", "a cat on a hill", "hill", "cat and dog", "a hill of seven cats and a dog", "nothing", "dog a", "cat hill"]
BALANCED = {"dino", "ibot", "dinov2", "dinov2, Sinkhorn"}  # methods whose teacher is balanced over a batch
MOVING = {"mae, raw pixels, a moving ratio": 2, "ijepa": 2, "modern_mae": 2, "modern_mae, captions": 2}  # graphs: the second has the lengths as variables
TRUNKS = [  # one of every kind of places and prefix
    "vit_small_patch14_reg4_dinov2",
    "deit3_small_patch16_224",
    "vit_base_patch16_siglip_224",
    "eva02_base_patch14_224",
    "vit_small_patch16_rope_mixed_224",
    "vit_small_patch16_dinov3",
]


def signal(name: str, img_size=(32, 32), in_chans=3, samples=4, make=pictures):
    _, _, views, local = METHODS[name]
    x = make(views * samples, in_chans, img_size)
    if name in CAPTIONED:
        return {"images": x, "text": Words(NETWORKS[name]["vocabulary"], METHODS[name][0].text_length)(SAID[:samples])}
    return {"global": x, "local": F.resize(make(local * samples, in_chans, img_size, seed=1), [side // 2 for side in img_size])} if local else x


def case(name: str, samples=4, make=pictures, **build) -> Case:
    method, patch, *_ = METHODS[name]
    if name in CODED:
        method = replace(method, tokenizer=vocabulary(build.get("in_chans", 3)))
    size = {key: build[key] for key in ("img_size", "in_chans") if key in build}
    return case_of(method, signal(name, samples=samples, make=make, **size), samples, **{"patch_size": patch} | NETWORKS.get(name, {}) | build)


@pytest.fixture(scope="module")
def photographs(request):
    """Real pictures where the data sets are, made ones elsewhere."""
    try:
        files = sorted(request.getfixturevalue("imagenette").glob("train/*/*"))
    except pytest.skip.Exception:
        return pictures
    read = [F.pil_to_tensor(Image.open(file).convert("RGB").resize((48, 48))) for file in files[:24]]
    x = (torch.stack(read).float() / 255 - 0.45) / 0.25

    def crops(count, in_chans=3, img_size=(32, 32), seed=0):
        top = 8 * seed
        return x[torch.arange(count) % len(x), :, top : top + img_size[0], top : top + img_size[1]]

    return crops


@pytest.mark.parametrize("name", METHODS)
def test_hidden_pixels_never_leak(name):
    check_leak(case(name))


@pytest.mark.parametrize("name", METHODS)
def test_every_trainable_parameter_is_trained(name):
    check_gradients(case(name))


@pytest.mark.parametrize("name", METHODS)
def test_a_step_is_one_graph(name):
    check_graph(case(name), graphs=MOVING.get(name, 1))


@pytest.mark.parametrize("name", METHODS)
def test_a_saved_learner_goes_on_as_it_would_have(name):
    check_saving(case(name))


@pytest.mark.parametrize("name", METHODS)
def test_the_loss_falls_on_photographs(name, photographs):
    learns = case(name, samples=8, make=photographs)
    if name in BALANCED:  # a centre that moves changes the question, from a trivial one to one about views that have nothing in common here
        method = replace(METHODS[name][0], centring="sinkhorn", momentum=1.0)
        learns = learns._replace(build=partial(method.build, **learns.build.keywords))
    check_learning(learns)


def test_two_processes_equal_one():
    wide = {"data2vec": {"img_size": (64, 64)}}  # a grid on which the counts of the two halves differ
    cases = {name: case(name, **wide.get(name, {})) for name in METHODS}
    alone = replace(METHODS["dinov2"][0], koleo=0.0)  # KoLeo looks for neighbours among a process's own pictures, as its source does
    cases["dinov2"] = cases["dinov2"]._replace(build=partial(alone.build, **cases["dinov2"].build.keywords))
    check_processes(cases | LEARNERS)


@pytest.mark.parametrize("in_chans", [1, 13])
@pytest.mark.parametrize("name", METHODS)
def test_any_shape_and_any_channels(name, in_chans):
    other = case(name, img_size=(32, 48), in_chans=in_chans)
    check_leak(other)
    check_gradients(other)


@pytest.mark.parametrize("name", [name for name in METHODS if not name.endswith("on Beit")])  # its relative places are made for one size
def test_the_size_may_change_at_run_time(name):
    built, other = case(name), case(name, img_size=(48, 32))
    check_leak(built._replace(x=other.x))
    check_gradients(built._replace(x=other.x))


@pytest.mark.parametrize("model", TRUNKS)
def test_mae_over_other_trunks(model):
    other = case("mae", img_size=(32, 48), in_chans=4, model=model)
    for law in (check_leak, check_gradients, check_saving):
        law(other)


def test_a_modern_trunk_is_one_graph():
    check_graph(case("mae", model="vit_small_patch16_dinov3"))


def test_all_laws_in_one_call():
    check_method(MAE(decoder_depth=1), processes=False)
