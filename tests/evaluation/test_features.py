"""Features: the pooled outputs of timm's own forward pass, one row a readable picture."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

from unmask.data.loader import Pictures
from unmask.data.sources import open_source
from unmask.data.statistics import Format
from unmask.errors import Failed, Refused
from unmask.evaluation.features import FeatureTable, extract, pixel_statistics, pool
from unmask.evaluation.probe import descend
from unmask.interchange.encoder import load_encoder
from unmask.settings import Views

SIZE = (32, 32)


def pictures(folder, encoder):
    form = Format(encoder.in_chans, encoder.low * encoder.in_chans, encoder.high * encoder.in_chans, encoder.mean, encoder.std)
    return Pictures(open_source(str(folder)), form, Views(), encoder.img_size)


@pytest.fixture(scope="module")
def few(imagenette, tmp_path_factory):
    """Four real photographs of three classes each, and three files that are none."""
    folder = tmp_path_factory.mktemp("few")
    for label in sorted((imagenette / "train").iterdir())[:3]:
        (folder / label.name).mkdir()
        for path in sorted(label.iterdir())[:4]:
            (folder / label.name / path.name).write_bytes(path.read_bytes())
        (folder / label.name / "broken.jpg").write_bytes(b"\xff\xd8 no picture")
    return folder


@pytest.fixture(scope="module")
def encoder():
    return load_encoder("random:vit_tiny_patch16_224", img_size=SIZE, patch_size=8)


def test_bad_pictures_have_no_row_and_are_counted(few, encoder):
    seen = pictures(few, encoder)
    with pytest.raises(Failed, match="3 of 15 samples cannot be read, more than max_bad_share"):
        extract(encoder, seen)
    seen.max_bad_share = 0.2
    table = extract(encoder, seen, batch_size=5)
    assert (len(table), table.skipped) == (12, 3) and table.poolings == ("cls", "avg", "cls+avg")
    assert table.of("cls+avg").shape == (12, 384) and not any("broken" in name for name in table.names)
    assert table.classes_of().tolist() == [0] * 4 + [1] * 4 + [2] * 4
    again = extract(encoder, seen, batch_size=64)
    torch.testing.assert_close(again.of("cls"), table.of("cls"), rtol=1e-4, atol=1e-5)
    part = extract(encoder, seen, indices=[3, 0])
    torch.testing.assert_close(part.of("avg"), table.of("avg")[[table.names.index(name) for name in part.names]], rtol=1e-4, atol=1e-5)
    assert pixel_statistics(seen).of("pixels").shape == (12, 6)


def test_no_labels_is_said_and_the_pooling_is_named():
    table = FeatureTable({"avg": torch.zeros(2, 3)}, None, ["a", "b"])
    with pytest.raises(Refused, match="label"):
        table.classes_of()
    with pytest.raises(Refused, match="'cls'"):
        table.of("cls")


@pytest.mark.golden
@pytest.mark.parametrize("name", ["dino_linear_blocks", "dino_linear_avgpool"])
def test_features_and_one_step_equal_dino(golden, name):
    tensors, metadata = golden(name)
    config, x = metadata["config"], tensors["input.images"]
    model = timm.create_model(
        "vit_tiny_patch16_224", img_size=x.shape[-1], patch_size=config["patch"], embed_dim=config["dim"], depth=config["depth"],
        num_heads=config["heads"], mlp_ratio=config["mlp_ratio"], num_classes=0, dynamic_img_size=True,
    )  # fmt: skip
    weights = {key.removeprefix("weights."): value for key, value in tensors.items() if key.startswith("weights.")}
    model.load_state_dict({key: value for key, value in weights.items() if not key.startswith("classifier.")})
    pooled = pool(model.eval(), x, layers=config["n_last_blocks"])
    features = torch.stack([pooled["cls"], pooled["avg"]], dim=2).flatten(1) if config["avgpool"] else pooled["cls"]  # theirs are interleaved
    torch.testing.assert_close(features, tensors["output.features"], rtol=1e-5, atol=2e-6)
    head = nn.Linear(features.shape[1], config["classes"])
    head.load_state_dict({key.removeprefix("classifier.linear."): value for key, value in weights.items() if key.startswith("classifier.")})
    torch.testing.assert_close(head(features.clone()), tensors["output.logits"], rtol=1e-5, atol=2e-6)
    step = {"epochs": 1, "batch_size": len(x), "seed": 0, "start": (head.weight.data.T, head.bias.data)}
    weight, bias = descend(features.clone(), tensors["input.labels"], torch.tensor([0.0, config["sgd"]["lr"]]), config["classes"], **step)
    torch.testing.assert_close(weight[1].T, tensors["output.after_step.linear.weight"], rtol=1e-5, atol=2e-6)
    torch.testing.assert_close(weight[0].T, head.weight.data)
    torch.testing.assert_close(bias[1], tensors["output.after_step.linear.bias"], rtol=1e-5, atol=2e-6)


def test_poolings_of_other_trunks():
    for name in ("vit_base_patch16_siglip_224", "resnet18"):
        model = timm.create_model(name, num_classes=0, **({"img_size": 32, "depth": 1} if "vit" in name else {})).eval()
        assert set(pool(model, torch.randn(2, 3, 32, 32))) == {"avg"}
    model = timm.create_model("eva02_tiny_patch14_224", img_size=28, depth=1, num_classes=0).eval()
    x = torch.randn(2, 3, 28, 28)
    with torch.no_grad():  # timm keeps this family's norm behind the pool
        torch.testing.assert_close(pool(model, x)["avg"], model.forward_head(model.forward_features(x), pre_logits=True))
