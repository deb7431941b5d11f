"""Whose weights these are, told from a few telling names, and what each group of names is: for one clear line when something does not fit.

Source: the key lists of published checkpoints in tests/golden/keys.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

OTHERS = (  # (a name that tells, whose it is): first match wins; these networks are not opened; those of BEiT's, EVA's and Swin's kind stand in published.py
    (r"^beit3\.", "BEiT-3"),
    (r"^transformer\.(wte|h\.0\.ln_1)", "Image GPT"),
    (r"adaLN_modulation", "a diffusion transformer (DiT)"),
    (r"[ew]o?_patch_embed|eo_decoder_pred", "Presto"),
    (r"s_t_channel_embed|space_time_embed", "Galileo"),
    (r"MAE_encoder\.|first_conv\.", "Point-MAE"),
    (r"^input_adapters\.", "MultiMAE"),
    (r"^preprocessor\.patchifier", "AIM"),
    (r"group_1\.block_1|^blocks\.input\.w$", "DALL-E's tokenizer"),
    (r"encode_task_layer|^quantize\.", "BEiT v2's tokenizer (VQ-KD)"),
    (r"^codebook\.", "a dVAE tokenizer"),
    (r"grn\.(beta|gamma|weight)|downsample_layers\.", "ConvNeXt V2 (FCMAE)"),
    (r"^stages\.\d", "a convolutional network"),
    (r"attn\.pool_[qkv]", "MViTv2 (MaskFeat)"),
    (r"^blocks\.\d+\.proj\.", "Hiera"),
    (r"layers\.\d+\.blocks\.\d+\.attn", "Swin V2, or another network of windows"),
    (r"get_token_probs", "AdaMAE (video)"),
    (r"^videomae\.|^encoder_to_decoder\.", "VideoMAE"),
    (r"^decode_blocks|rebuild_blocks", "BootMAE"),
    (r"modality_encoders\.", "data2vec 2.0 for sound or text"),
    (r"rope\.freqs_(cos|sin)", "a network with EVA-02's rotary places that is none of EVA-02's (EVA-CLIP?)"),
    (r"attn\.(q_bias|relative_position)|^rel_pos_bias", "a network with BEiT's attention that is none of BEiT's kind (VideoMAE, or one of timm's own)"),
    (r"^pos_embed_spatial|^pos_embed_temporal", "MAE for video (mae_st)"),
    (r"^channel_(cls_)?embed|^patch_embed\.\d+\.proj", "SatMAE with groups of bands"),
    (r"^fcn_(high|low)\.|^fpn\.", "Scale-MAE"),
    (r"decoder_blocks\.\d+\.attn\.(tau|meta_mlp)", "AudioMAE"),
    (r"neck\.\d+\.|^image_encoder\.|mlp\.lin1", "SAM's image encoder"),
    (r"simfp_\d|attn\.rel_pos_h", "a ViTDet detector"),
    (r"rope_embed\.|storage_tokens", "DINOv3"),
    (r"^(module\.)?visual\.|^vision_model\.|quick_gelu", "CLIP or SigLIP"),
    (r"^layer1\.0\.conv|^conv1\.weight", "a ResNet"),
    (r"^features\.\d", "a convolutional network of torchvision"),
    (r"^encoder\.layers\.encoder_layer_0", "torchvision's vision transformer"),
)

HARMLESS = (  # (names, what they are): left out of an encoder without changing what it computes
    (r"^decoder_|^decoder\.|^dec_norms\.|^wfm\.", "the decoder, not needed for an encoder"),
    (r"^(dino_|ibot_)?head\.(mlp|last_layer|\d)|^(dino|ibot)_head\.|^predictor\.|^projector\.|^projection_head\.|^prototypes\.", "the projection head of its training"),
    (r"^head\.|^head_dist\.|^classifier\.|^cls_classifier\.|^distillation_classifier\.|^fc\.|^linear_head\.", "a classifier"),
    (r"(^|\.)pooler\.", "a layer on the class token that is no part of the features"),
    (r"(^|\.)mask(ed)?_(token|embed)$", "the token that stood for masked patches in training"),
    (r"^pre_logits\.", "a layer before the classifier"),
)
OTHER_PART = "another part of its training (a second network, a loss, an optimiser)"
UNKNOWN = "not part of a plain vision transformer"


def family_of(names: Iterable[str]) -> str | None:
    """Whose weights these are, where a name tells a family that is no plain vision transformer; None otherwise."""
    names = list(names)
    return next((family for tells, family in OTHERS if any(re.search(tells, name) for name in names)), None)


def groups(names: Iterable[str], otherwise: str) -> dict[str, list[str]]:
    """Names by what they are: a sentence of HARMLESS, else `otherwise`."""
    found: dict[str, list[str]] = {}
    for name in names:
        what = next((says for tells, says in HARMLESS if re.search(tells, name)), otherwise)
        found.setdefault(what, []).append(name)
    return found


def shortly(names: Iterable[str]) -> str:
    """A few words for many names: `decoder_*`, `head.*`, `blocks.*.attn.q_bias`."""
    stems: dict[str, list[str]] = {}
    for name in names:
        stems.setdefault(_stem(name), []).append(name)
    said = [stem if len(inner) > 1 else inner[0] for stem, inner in stems.items()]
    return ", ".join(said[:4]) + (", …" if len(said) > 4 else "")


def _stem(name: str) -> str:
    if name.startswith("decoder_"):
        return "decoder_*"
    if ".blocks." in f".{name}":
        return re.sub(r"\.(weight|bias)$", "", re.sub(r"\.\d+(?=\.)", ".*", name))
    first, dot, _ = name.partition(".")
    return f"{first}.*" if dot else first
