"""preprocessor_config.json: the processor of transformers that comes nearest to what evaluation does.

Evaluation resizes a picture to cover the input over .875 (above 224 pixels: the input itself) and cuts the centre;
transformers' BitImageProcessor resizes the shorter side and cuts the centre, which is the same for a square input but for the rounding of
a half: where evaluation, as torchvision, takes the even pixel, transformers takes the lower one. With `backend="pil"` the pixels are
then equal, with torchvision's resize (the default) within a hundredth of a grey level on average.
"""

from __future__ import annotations

from typing import Any

from unmask.interchange.timm import Encoder, sight_of
from unmask.settings import evaluation_share

BICUBIC = 3  # Pillow's number
EXACT = "unmask.load_transform gives evaluation's own pixels"


def preprocessor(encoder: Encoder, exact: bool = False) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The file's content, and lines about where it differs from evaluation; empty where no statistics are known.

    `exact`: the pictures have the input's own size, so evaluation takes them as they are, and so does this.
    """
    if encoder.mean is None or encoder.std is None:
        return {}, ("no preprocessor_config.json: no mean and std are known for this encoder",)
    height, width = encoder.img_size
    share = evaluation_share(encoder.img_size)
    shorter = min(height, width) if exact else max(int(height / share), int(width / share))
    eight_bit = set(encoder.low) == {0.0} and set(encoder.high) == {255.0}
    config: dict[str, Any] = {
        "image_processor_type": "BitImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": shorter},
        "resample": BICUBIC,
        "do_center_crop": True,
        "crop_size": {"height": height, "width": width},
        "do_convert_rgb": encoder.in_chans == 3 and eight_bit,
        "do_normalize": True,
    }
    said = []
    if eight_bit:
        config |= {"do_rescale": True, "rescale_factor": 1 / 255, "image_mean": list(encoder.mean), "image_std": list(encoder.std)}
    else:
        config |= {"do_rescale": False} | folded(encoder) | sight_of(encoder)
        said.append(f"its processor takes numbers as they are stored, and does not cut them to the measured range: {EXACT}")
    if encoder.in_chans not in (1, 3, 4):
        said.append(f"transformers' processor wants input_data_format said for pictures of {encoder.in_chans} channels: {EXACT}")
    elif encoder.in_chans == 1:
        said.append('its processor wants grey pictures: picture.convert("L")')
    if exact:
        said.append(f"its processor takes pictures of {height} x {width} as they are, and zooms on no others")
    elif height != width:
        said.append(f"its processor cuts tighter than evaluation, for a {height} x {width} input is not square: {EXACT}")
    else:
        said.append(f"its processor cuts the centre as evaluation does, in some pictures one pixel beside it: {EXACT}")
    return config, tuple(said)


def folded(encoder: Encoder) -> dict[str, list[float]]:
    """Mean and std in stored units: (v - low) / (high - low), then (. - mean) / std, in one step."""
    channels = range(encoder.in_chans)
    low, high = (value * encoder.in_chans if len(value) == 1 else value for value in (encoder.low, encoder.high))
    span = [high[c] - low[c] for c in channels]
    mean, std = encoder.mean or (), encoder.std or ()
    return {"image_mean": [low[c] + mean[c] * span[c] for c in channels], "image_std": [std[c] * span[c] for c in channels]}
