"""Image GPT in Hugging Face's form (ImageGPTForCausalImageModeling), to and from the learner `igpt` over its own network.

There the start token is the last row of the vocabulary, matrices are (in, out), and every layer has a bias, which is zero in the published
weights because the original has none. The palette stands in the folder's preprocessor_config.json (`clusters`, in −1..1).
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from unmask.errors import Refused

TRUNK, LAST = "encoder.trunk.", "objectives.codes.decoder.predict.weight"
INNER = {"ln_1": "norm1", "ln_2": "norm2", "attn.c_attn": "attn.qkv", "attn.c_proj": "attn.proj", "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"}
OUTER = {ours: theirs for theirs, ours in INNER.items()}


def ours(state: Mapping[str, Tensor], where: str = "the file") -> tuple[dict[str, Tensor], list[str]]:
    """Their names to our learner's; second, the keys that no row names. Biases that are not zero are refused: our network has none."""
    found, left = {}, []
    for key, value in state.items():
        name = key.removeprefix("transformer.")
        block = re.fullmatch(r"h\.(\d+)\.(.+)\.(weight|bias)", name)
        if name == "wte.weight":
            found[TRUNK + "patch_embed.proj.weight"], found[TRUNK + "cls_token"] = value[:-1], value[-1:].unsqueeze(0)
        elif name == "wpe.weight":
            found[TRUNK + "pos_embed"] = torch.cat([value, value.new_zeros(1, value.shape[1])]).unsqueeze(0)  # of the last pixel nothing follows
        elif name == "ln_f.weight":
            found[TRUNK + "norm.weight"] = value
        elif key == "lm_head.weight":
            found[LAST] = value
        elif block is None or block[2] not in INNER:
            left += [key] if not name.endswith((".attn.bias", ".attn.masked_bias")) else []  # causal masks, which are computed
        elif block[3] == "bias":
            if not value.is_meta and value.any():
                raise Refused(f"{where} has {key}, which is not zero: Image GPT's network has no biases")
        else:
            found[f"{TRUNK}blocks.{block[1]}.{INNER[block[2]]}.weight"] = value.T if value.dim() == 2 else value
    return found, left


def theirs(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our learner's names to theirs, with biases of zero; the place of the last pixel, which nothing reads there, is left out."""
    token = state[TRUNK + "cls_token"]
    found = {"transformer.wte.weight": torch.cat([state[TRUNK + "patch_embed.proj.weight"], token[0]])}
    found |= {"transformer.wpe.weight": state[TRUNK + "pos_embed"][0, :-1], "transformer.ln_f.weight": state[TRUNK + "norm.weight"], "lm_head.weight": state[LAST]}
    for key, value in state.items():
        block = re.fullmatch(re.escape(TRUNK) + r"blocks\.(\d+)\.(.+)\.weight", key)
        if block is not None:
            stem = f"transformer.h.{block[1]}.{OUTER[block[2]]}."
            found[stem + "weight"] = value.T.contiguous() if value.dim() == 2 else value
            found |= {stem + "bias": value.new_zeros(len(value))} if value.dim() == 2 else {}
    return found


def colours(clusters: object) -> Tensor:
    """A palette (K, 3) in 0..1 from the one in the folder, in −1..1."""
    return (torch.tensor(clusters, dtype=torch.float32) + 1) / 2
