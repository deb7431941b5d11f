"""What is exported for transformers opens there by AutoModel alone, with exactly the trunk's features; what does not fit is refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from trunks import TRUNKS, encoder_of

from unmask.data.transform import Transform
from unmask.errors import Refused
from unmask.interchange.card import Facts
from unmask.interchange.encoder import load_encoder
from unmask.interchange.huggingface_export import export_huggingface
from unmask.interchange.timm import photograph
from unmask.interchange.timm_export import export_timm

transformers = pytest.importorskip("transformers")
FORMS = {  # the class, and the largest difference there may be: rotary angles are computed in another order
    "square": ("ViTModel", 0),
    "not square, 13 channels": ("ViTModel", 0),
    "grey, narrow": ("ViTModel", 0),
    "half of the biases": ("ViTModel", 0),
    "no class token": ("IJepaModel", 0),
    "layer scale": ("Dinov2Model", 0),
    "layer scale, class token with a place": ("Dinov2Model", 0),
    "registers": ("Dinov2WithRegistersModel", 0),
    "gated": ("Dinov2WithRegistersModel", 2e-6),
    "relative places": ("BeitModel", 2e-6),
    "relative places a block, and absolute ones": ("BeitModel", 2e-6),
    "windows": ("SwinModel", 2e-6),
    "DINOv3's places": ("DINOv3ViTModel", 2e-5),
    "DINOv3's places, biases": ("DINOv3ViTModel", 2e-5),
    "DINOv3's places, gated": ("DINOv3ViTModel", 2e-5),
}
REASONS = {
    "registers, not square": "square pictures only",
    "relative places, not square": "square pictures only",
    "windows of two sizes": "3x3, 6x6, 7x7",
    "rotary and sub-LN": "inner norm",
    "rotary": "RotaryEmbeddingCat",
    "rotary, mixed": "rotary places are learned",
    "norm before the blocks": "norm before its blocks",
    "registers, no class token": "no class token",
}


def test_every_trunk_is_here():
    assert set(FORMS) | set(REASONS) == set(TRUNKS)


@pytest.mark.parametrize("case", FORMS)
def test_opens_by_auto_model_with_the_trunks_features(case, tmp_path):
    encoder, (form, tolerance) = encoder_of(case, tmp_path / "run"), FORMS[case]
    done = export_huggingface(encoder, tmp_path / "hf")
    assert done.form == form and form in done.said[0] and done.difference <= tolerance
    opened, info = transformers.AutoModel.from_pretrained(tmp_path / "hf", output_loading_info=True)
    assert type(opened).__name__ == form and not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    x = photograph(encoder, 3)
    with torch.no_grad():
        wanted, answer = encoder.model.forward_features(x), opened.eval()(pixel_values=x)
    wanted = wanted.flatten(1, -2)  # (B, tokens, D): Swin's features lie on a grid
    torch.testing.assert_close(answer.last_hidden_state, wanted, rtol=0, atol=tolerance)
    if "pooler_output" in answer and answer.pooler_output is not None:
        pooled = wanted.mean(dim=1) if case == "windows" else wanted[:, 0]
        torch.testing.assert_close(answer.pooler_output, pooled, rtol=0, atol=tolerance + 1e-6)
    assert sorted(path.name for path in (tmp_path / "hf").iterdir()) == ["README.md", "config.json", "model.safetensors", "preprocessor_config.json"]


@pytest.mark.parametrize("case", REASONS)
def test_what_fits_no_class_is_refused_with_the_reason(case, tmp_path):
    with pytest.raises(Refused, match=REASONS[case]) as caught:
        export_huggingface(encoder_of(case, tmp_path / "run"), tmp_path / "hf")
    assert "--to onnx" in str(caught.value) and not (tmp_path / "hf").exists()


@pytest.mark.parametrize("case", ["rotary and sub-LN", "registers, not square"])
def test_timms_folder_opens_too(case, tmp_path):
    """What the refusal advises: transformers opens the folder of `--to timm` by timm."""
    encoder = encoder_of(case, tmp_path / "run")
    export_timm(encoder, tmp_path / "timm")
    opened, x = transformers.AutoModel.from_pretrained(tmp_path / "timm").eval(), photograph(encoder)
    with torch.no_grad():
        assert type(opened).__name__ == "TimmWrapperModel" and torch.equal(opened(x).last_hidden_state, encoder.model.forward_features(x))


@pytest.mark.parametrize("case", [case for case, (form, _) in FORMS.items() if form != "DINOv3ViTModel"])
def test_out_and_in_again(case, tmp_path):
    """What we wrote we read: the same features and the same statistics."""
    encoder = encoder_of(case, tmp_path / "run")
    export_huggingface(encoder, tmp_path / "hf")
    again, x = load_encoder(tmp_path / "hf"), photograph(encoder)
    with torch.no_grad():
        assert torch.equal(again.model.forward_features(x), encoder.model.forward_features(x))
    assert (again.mean, again.std, again.low, again.high) == (encoder.mean, encoder.std, encoder.low, encoder.high)
    assert (again.img_size, again.in_chans, again.patch_size) == (encoder.img_size, encoder.in_chans, encoder.patch_size)


def test_what_data2vec_trained_gets_its_own_class(tmp_path):
    """Data2VecVisionModel computes what BeitModel does: the run's method decides which name it gets, other networks keep theirs."""
    facts = Facts(config={"method": "data2vec"})
    done = export_huggingface(encoder_of("relative places", tmp_path / "run"), tmp_path / "hf", facts=facts)
    opened, info = transformers.AutoModel.from_pretrained(tmp_path / "hf", output_loading_info=True)
    assert done.form == type(opened).__name__ == "Data2VecVisionModel" and done.difference <= 2e-6
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert load_encoder(tmp_path / "hf", say=lambda line: None).report.method == "data2vec"
    assert export_huggingface(encoder_of("square", tmp_path / "plain"), tmp_path / "vit", facts=facts).form == "ViTModel"


@pytest.mark.parametrize("writer", [export_huggingface, export_timm])
def test_a_range_that_is_not_8_bits_comes_in_again(writer, tmp_path):
    """Their words know mean and std only: without the range 16-bit pictures would be read as 8-bit ones."""
    encoder = replace(encoder_of("grey, narrow", tmp_path / "run"), low=(120.0,), high=(3900.0,))
    writer(encoder, tmp_path / "out")
    again = load_encoder(tmp_path / "out")
    assert (again.low, again.high, again.mean, again.std) == ((120.0,), (3900.0,), encoder.mean, encoder.std)
    array = np.random.default_rng(0).integers(0, 5000, (40, 32)).astype(np.uint16)
    assert torch.equal(Transform(again)(array), Transform(encoder)(array))


def test_a_classifier_takes_the_folder(tmp_path):
    encoder = encoder_of("square", tmp_path / "run")
    export_huggingface(encoder, tmp_path / "hf")
    model, info = transformers.ViTForImageClassification.from_pretrained(tmp_path / "hf", num_labels=5, output_loading_info=True)
    assert set(info["missing_keys"]) == {"classifier.weight", "classifier.bias"}
    x = photograph(encoder)
    with torch.no_grad():
        torch.testing.assert_close(model.eval().vit(x).last_hidden_state, encoder.model.forward_features(x), rtol=0, atol=0)


def grey_levels(x, y) -> float:
    """The mean difference of two inputs in grey levels."""
    return float((x - y).abs().mean() * 0.2 * 255)


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("case", ["square", "grey, narrow"])
def test_the_processor_is_evaluation_where_nothing_is_rounded(case, exact, imagenette, tmp_path):
    """Square pictures: Pillow's backend gives the same pixels, torchvision's the same within rounding."""
    encoder = encoder_of(case, tmp_path / "run")
    export_huggingface(encoder, tmp_path / "hf", exact=exact)
    processors = [transformers.AutoImageProcessor.from_pretrained(tmp_path / "hf", **backend) for backend in ({}, {"backend": "pil"})]
    transform = Transform(encoder)
    for path in sorted((imagenette / "val").rglob("*.JPEG"))[::20]:
        with Image.open(path) as file:
            picture = file.convert("L" if encoder.in_chans == 1 else "RGB").resize(encoder.img_size if exact else (201, 201))
        x, y = (processor(picture, return_tensors="pt").pixel_values[0] for processor in processors)
        assert x.shape == y.shape == (encoder.in_chans, *encoder.img_size)
        assert grey_levels(x, transform(picture)) < 0.02 and grey_levels(y, transform(picture)) < 1e-4


def test_elsewhere_it_is_a_pixel_beside(imagenette, tmp_path):
    """What the line about rounding says: of pictures that are not square, the cut is the same one or lies one pixel beside it."""
    encoder = encoder_of("square", tmp_path / "run")
    done = export_huggingface(encoder, tmp_path / "hf")
    assert any("one pixel beside" in line for line in done.said)
    processor, transform, beside = transformers.AutoImageProcessor.from_pretrained(tmp_path / "hf", backend="pil"), Transform(encoder), set()
    for i, path in enumerate(sorted((imagenette / "val").rglob("*.JPEG"))[::8]):
        with Image.open(path) as file:
            picture = file.convert("RGB").resize((150 + 3 * i, 150))
        x, y = processor(picture, return_tensors="pt").pixel_values[0], transform(picture)
        shifts = {0: grey_levels(x, y), 1: grey_levels(x[..., 1:], y[..., :-1])}
        best = min(shifts, key=shifts.__getitem__)
        assert shifts[best] < 0.02, shifts
        beside.add(best)
    assert beside == {0, 1}


def test_numbers_in_stored_units(tmp_path):
    """A range that is not 8 bits is folded into the processor's mean and deviation."""
    encoder = replace(encoder_of("grey, narrow", tmp_path / "run"), low=(120.0,), high=(3900.0,))
    done = export_huggingface(encoder, tmp_path / "hf", exact=True)
    assert any("stored" in line for line in done.said)
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "hf")
    array = np.random.default_rng(0).integers(120, 3900, (32, 32)).astype(np.uint16)
    x = processor(array.astype(np.float32)[None], return_tensors="pt", input_data_format="channels_first").pixel_values[0]
    torch.testing.assert_close(x, Transform(encoder)(array), rtol=1e-4, atol=1e-4)
