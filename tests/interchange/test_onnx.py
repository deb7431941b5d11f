"""The ONNX file runs in onnxruntime with any number of pictures, and gives the trunk's features and what `unmask embed` writes."""

from __future__ import annotations

import json

import pytest
import torch
from trunks import encoder_of

from unmask.errors import Failed
from unmask.evaluation.features import pool
from unmask.interchange.onnx import export_onnx
from unmask.interchange.timm import photograph
from unmask.interchange.witness import Witness

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


def run(file, x):
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    return [torch.from_numpy(answer) for answer in session.run(["features", "pooled"], {"image": x.numpy()})]


@pytest.mark.parametrize("case", ["square", "no class token", "rotary and sub-LN", "rotary, mixed"])
def test_any_number_of_pictures(case, tmp_path):
    encoder = encoder_of(case, tmp_path / "run")
    done = export_onnx(encoder, tmp_path / "e.onnx")
    assert done.difference < 1e-4 and "differ" in done.said[-1]
    x = photograph(encoder, 5)
    with torch.no_grad():
        wanted, pooled = encoder.model.forward_features(x), pool(encoder.model, x)
    for count in (1, 3, 5):
        features, together = run(tmp_path / "e.onnx", x[:count])
        torch.testing.assert_close(features, wanted[:count], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(together, pooled["cls" if "cls" in pooled else "avg"][:count], rtol=1e-4, atol=1e-4)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["e.onnx", "run"]


def test_what_has_to_be_known_is_in_the_file(tmp_path):
    export_onnx(encoder_of("square", tmp_path / "run"), tmp_path / "new" / "folder")
    model = onnx.load(tmp_path / "new" / "folder" / "encoder.onnx")
    onnx.checker.check_model(model)
    words = {prop.key: prop.value for prop in model.metadata_props}
    assert words["model"] == "vit_tiny_patch16_224" and json.loads(words["mean"]) == [0.4] * 3 and json.loads(words["img_size"]) == [64, 64]
    (image,) = model.graph.input
    sizes = [dim.dim_value or dim.dim_param for dim in image.type.tensor_type.shape.dim]
    assert image.name == "image" and isinstance(sizes[0], str) and sizes[1:] == [3, 64, 64]
    assert [output.name for output in model.graph.output] == ["features", "pooled"]


def test_large_weights_go_into_a_second_file_and_that_is_said(tmp_path):
    encoder = encoder_of("square", tmp_path / "run")
    done = export_onnx(encoder, tmp_path / "large", largest=1_000_000)
    assert "encoder.onnx.data" in done.said[0]
    assert sorted(path.name for path in (tmp_path / "large").iterdir()) == ["encoder.onnx", "encoder.onnx.data"]
    x = photograph(encoder, 2)
    torch.testing.assert_close(run(tmp_path / "large" / "encoder.onnx", x)[0], encoder.model.forward_features(x), rtol=1e-4, atol=1e-4)
    export_onnx(encoder, tmp_path / "large")  # again, in one file: the second is not left to be taken for its weights
    assert [path.name for path in (tmp_path / "large").iterdir()] == ["encoder.onnx"]


def test_another_network_is_not_handed_out(tmp_path):
    encoder = encoder_of("square", tmp_path / "run")
    witness = Witness.of(encoder)
    with pytest.raises(Failed, match="differs by"):
        export_onnx(encoder, tmp_path / "new" / "e.onnx", Witness(witness.pictures, witness.features + 0.1))
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
