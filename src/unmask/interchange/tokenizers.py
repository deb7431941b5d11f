"""Published tokenizers by our names: DALL-E's discrete VAE, and BEiT v2's VQ-KD, that both ways.

Sources: openai/DALL-E, dall_e/encoder.py and decoder.py; microsoft/unilm, beit2/modeling_vqkd.py and norm_ema_quantizer.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from unmask.interchange.prefixes import in_ours, in_theirs
from unmask.tokenizers.dvae import DVAE
from unmask.tokenizers.vqkd import VQKD

VQKD_ROWS = (  # theirs, ours
    ("encode_task_layer.", "to_codes."),
    ("decode_task_layer.", "to_features."),
    ("quantize.embedding.weight", "codebook.rows"),
    ("encoder.", "encoder.trunk."),
    ("decoder.", "decoder.trunk."),
)
UNUSED = ("teacher", "scaling", "loss", "quantize.cluster_size", "quantize.embedding.cluster_size", "quantize.embedding.embed_avg", "quantize.embedding.initted")


def from_dalle(encoder: Mapping[str, Tensor], decoder: Mapping[str, Tensor] | None = None) -> DVAE:
    """The network of published weights, sizes read off the tensors; without a decoder it gives codes but no pictures."""
    hidden, in_chans = encoder["blocks.input.w"].shape[:2]
    blocks = len({key.split(".")[2] for key in encoder if key.startswith("blocks.group_1.")})
    first = 128 if decoder is None else decoder["blocks.input.w"].shape[0]
    network = DVAE(in_chans, hidden, blocks, encoder["blocks.output.conv.w"].shape[0], first=first)
    if decoder is None:
        network.decoder, network.paints = nn.Module(), False  # none, rather than one with random weights
    for part, state in ((network.encoder, encoder), (network.decoder, decoder)):
        if state is not None:
            part.load_state_dict({dalle_name(key): value for key, value in state.items()})
    return network


def dalle_name(key: str) -> str:
    """`w` and `b` of DALL-E's own convolution as torch's."""
    stem, _, last = key.rpartition(".")
    names = {"w": "weight", "b": "bias"}
    return f"{stem}.{names[last]}"


def from_vqkd(state: Mapping[str, Tensor], heads: int | None = None) -> VQKD:
    """The tokenizer of a published file (BEiT v2, TOKENIZER.md), sizes read off the tensors; heads are 64 columns wide unless said."""
    ours = vqkd_names(state)
    width, in_chans, side, _ = state["encoder.patch_embed.proj.weight"].shape
    grid = math.isqrt(state["encoder.pos_embed"].shape[1] - 1)
    depth, decoder_depth = (len({key.split(".")[2] for key in state if key.startswith(f"{part}.blocks.")}) for part in ("encoder", "decoder"))
    hidden = state["encoder.blocks.0.mlp.fc1.weight"].shape[0]
    trunk = {"model": "vit_base_patch16_224", "img_size": (grid * side, grid * side), "in_chans": in_chans, "patch_size": side, "num_classes": 0}
    trunk |= {"embed_dim": width, "depth": depth, "num_heads": heads or max(1, width // 64), "mlp_ratio": hidden / width, "fc_norm": False, "dynamic_img_size": True}
    vocabulary, columns = state["quantize.embedding.weight"].shape
    network = VQKD(trunk, state["decode_task_layer.2.weight"].shape[0], vocabulary, columns, decoder_depth)
    network.load_state_dict(ours | {"codebook.begun": torch.tensor(True)})
    return network


def vqkd_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Official names as ours: the biases of queries and values become one vector with zeros for keys between."""
    found: dict[str, Tensor] = {}
    for key, value in state.items():
        if key.startswith(UNUSED) or key.endswith("attn.v_bias"):
            continue
        name = (in_ours(key, VQKD_ROWS) or key).replace(".trunk.fc_norm.", ".trunk.norm.")
        if name.endswith("attn.q_bias"):
            name, other = name.replace("attn.q_bias", "attn.qkv.bias"), state[key.replace("q_bias", "v_bias")]
            value = torch.cat([value, torch.zeros_like(value), other])
        found[name] = value
    return found


def to_vqkd(network: VQKD) -> dict[str, Tensor]:
    """The inverse, for microsoft/unilm's own code; what it only counts begins at zero. A bias of keys changes nothing and is left out."""
    found: dict[str, Tensor] = {}
    for key, value in network.state_dict().items():
        if key == "codebook.begun":
            continue
        name = (in_theirs(key, VQKD_ROWS) or key).replace("coder.norm.", "coder.fc_norm.")
        if name.endswith("attn.qkv.bias"):
            query, _, values = value.chunk(3)
            found |= {name.replace("qkv.bias", "q_bias"): query.clone(), name.replace("qkv.bias", "v_bias"): values.clone()}
        else:
            found[name] = value
    rows = network.codebook.rows
    counts = {name: rows.new_zeros(len(rows)) for name in ("quantize.cluster_size", "quantize.embedding.cluster_size")}
    return found | counts | {"quantize.embedding.embed_avg": rows.clone(), "quantize.embedding.initted": rows.new_ones(1)}
