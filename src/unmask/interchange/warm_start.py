"""An encoder as the beginning of somebody else's network: SAM's image encoder, a ViTDet detector's backbone, a diffusion transformer (DiT).

Each holds the encoder's blocks, and more or less beside them. These files begin a training, they do not end one: windows hide from each other what the
encoder saw at once, class and register tokens are gone, and what the encoder never had begins anew. What is checked is that every weight arrived: where the
new network computes what the encoder computes, it must give the same numbers. Sources: facebookresearch/segment-anything (image_encoder.py),
facebookresearch/detectron2 (modeling/backbone/vit.py), facebookresearch/DiT (models.py); proved by the goldens `sam_encoder`, `vitdet`, `dit_diffusion`.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
from timm.layers import Mlp
from timm.models.vision_transformer import Attention, Block, VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from unmask.errors import Refused
from unmask.interchange.timm import Encoder, write
from unmask.interchange.witness import Exported, Witness, look, small
from unmask.patches import resize_places

WINDOW = 14  # patches a side of a window, of SAM and ViTDet alike
GRID = 64  # patches a side of their pictures: 1024 pixels
NECK = 256  # channels of SAM's embedding


def check(model: Any) -> None:
    """Refuse a network whose blocks are not of the plain kind."""
    plain = isinstance(model, VisionTransformer) and isinstance(model.norm_pre, nn.Identity)
    for block in model.blocks if plain else ():
        plain &= type(block) is Block and type(block.attn) is Attention and type(block.mlp) is Mlp and isinstance(block.mlp.act, nn.GELU)
        plain &= isinstance(block.attn.q_norm, nn.Identity) and isinstance(block.attn.norm, nn.Identity) and isinstance(block.mlp.norm, nn.Identity)
    if not plain:
        raise Refused(f"a {type(model).__name__} like this has blocks that SAM, ViTDet and DiT do not have: choose a plain vit_*")


def blocks_of(encoder: Encoder) -> dict[str, Tensor]:
    """The blocks' tensors by timm's names, layer scales put into the layers before them."""
    model = encoder.model
    check(model)
    found = {f"blocks.{name}": value.detach().clone() for name, value in model.blocks.state_dict().items()}
    for i, block in enumerate(model.blocks):
        for scale, layer in (("ls1", "attn.proj"), ("ls2", "mlp.fc2")):
            gamma = found.pop(f"blocks.{i}.{scale}.gamma", None)
            if gamma is not None:
                found[f"blocks.{i}.{layer}.weight"] *= gamma.unsqueeze(1)
                found[f"blocks.{i}.{layer}.bias"] *= gamma
        if block.attn.qkv.bias is None:
            found[f"blocks.{i}.attn.qkv.bias"] = found[f"blocks.{i}.attn.qkv.weight"].new_zeros(3 * model.embed_dim)
    return found


def places_of(encoder: Encoder, grid: tuple[int, int]) -> Tensor:
    """The absolute places of patches for a grid (1, N, D): interpolated, without prefix tokens; zero where the encoder has none."""
    model = encoder.model
    if model.pos_embed is None:
        return torch.zeros(1, grid[0] * grid[1], model.embed_dim)
    own = tuple(model.patch_embed.grid_size)
    rows = model.pos_embed.detach()[:, model.pos_embed.shape[1] - own[0] * own[1] :]
    return resize_places(rows, own, grid)


def sam_network(encoder: Encoder, grid: int) -> Any:
    """timm's network of SAM's image encoder, of this encoder's size, for pictures of so many patches a side."""
    model = encoder.model
    check(model)
    patch, depth, attention = encoder.patch_size or (16, 16), len(model.blocks), model.blocks[0].attn
    if patch[0] != patch[1]:
        raise Refused("SAM and ViTDet have square patches")
    return timm.create_model(
        "samvit_base_patch16",
        img_size=grid * patch[0],
        patch_size=patch[0],
        in_chans=encoder.in_chans,
        embed_dim=model.embed_dim,
        depth=depth,
        num_heads=attention.num_heads,
        mlp_ratio=model.blocks[0].mlp.fc1.out_features / model.embed_dim,
        norm_layer=partial(nn.LayerNorm, eps=model.blocks[0].norm1.eps),
        window_size=WINDOW,
        global_attn_indexes=tuple(depth * (quarter + 1) // 4 - 1 for quarter in range(4)),
        use_rel_pos=True,
        neck_chans=NECK,
        num_classes=0,
    ).eval()


def sam_state(encoder: Encoder, network: Any, grid: int) -> dict[str, Tensor]:
    """The state of that network: the encoder's weights, relative places of zero, and a neck that begins anew."""
    embed = {f"patch_embed.proj.{name}": value.detach() for name, value in encoder.model.patch_embed.proj.named_parameters()}
    own = embed | blocks_of(encoder) | {"pos_embed": places_of(encoder, (grid, grid)).unflatten(1, (grid, grid))}
    fresh = {name: torch.zeros_like(value) if ".rel_pos_" in name else value for name, value in network.state_dict().items()}
    if unknown := own.keys() - fresh.keys():
        raise Refused(f"SAM's image encoder has no {sorted(unknown)[0]}: choose a plain vit_*")
    return fresh | own


def is_trained(encoder: Encoder, witness: Witness) -> None:
    """Failed where what was opened is not the trained encoder: all that follows compares with what was opened."""
    witness.difference(look(encoder.model.eval().forward_features, witness.pictures), "the encoder that was opened")


@torch.inference_mode()
def arrived(encoder: Encoder, pictures: Tensor) -> float:
    """How far the windowed network is from the encoder's own blocks on patches alone, where one window holds the picture: the largest difference."""
    network = sam_network(encoder, WINDOW)
    network.load_state_dict(sam_state(encoder, network, WINDOW))
    side = WINDOW * (encoder.patch_size or (16, 16))[0]
    x = F.interpolate(pictures[:2].float(), size=(side, side), mode="bicubic", antialias=True)
    model = encoder.model.eval()
    wanted = model.patch_embed(x).reshape(len(x), WINDOW**2, -1) + places_of(encoder, (WINDOW, WINDOW))
    wanted = model.blocks(wanted)  # (B, N, D)
    found = network.patch_embed(x) + network.pos_embed
    found = network.blocks(found).flatten(1, 2)
    return Witness(x, wanted).difference(found, "the windowed network")


def export_sam(encoder: Encoder, out: str | Path, witness: Witness, grid: int = GRID) -> Exported:
    """Write SAM's image encoder (OUT, or OUT/image_encoder.pth) in its own names, behind `image_encoder.`, once timm's network has opened it and run."""
    check(encoder.model)
    is_trained(encoder, witness)
    difference = arrived(encoder, witness.pictures)
    network = sam_network(encoder, grid)
    state = sam_state(encoder, network, grid)
    file = _file(out, "image_encoder.pth")
    named = {"image_encoder." + name.replace(".mlp.fc", ".mlp.lin"): value for name, value in state.items()}
    opened = {name.removeprefix("image_encoder.").replace(".mlp.lin", ".mlp.fc"): value for name, value in named.items()}
    network.load_state_dict(opened)  # strict
    _runs(network, encoder, grid)
    _save(file, named)
    said = f"{file}: SAM's image encoder for pictures of {grid} x {grid} patches; relative places begin at zero, the neck anew"
    return Exported(file, "SAM's image encoder", difference, (said, _arrived(file, difference)))


def export_vitdet(encoder: Encoder, out: str | Path, witness: Witness, grid: int = GRID) -> Exported:
    """Write a ViTDet detector's backbone (OUT, or OUT/backbone.pth) in detectron2's names, under `model`; the pyramid begins in the detector."""
    check(encoder.model)
    rows, columns = encoder.model.patch_embed.grid_size
    if rows != columns:
        raise Refused(f"--to vitdet: its table of places is that of a square picture, and this encoder's is {rows} x {columns} patches: --img_size SIDE")
    is_trained(encoder, witness)
    difference = arrived(encoder, witness.pictures)
    network = sam_network(encoder, grid)
    state = {name: value for name, value in sam_state(encoder, network, grid).items() if not name.startswith("neck.")}
    network.load_state_dict(state, strict=False)
    _runs(network, encoder, grid)
    places = F.pad(places_of(encoder, (rows, columns)), (0, 0, 1, 0))  # (1, 1 + N, D): its class row is read by nobody
    named = {f"backbone.net.{name}": value for name, value in (state | {"pos_embed": places}).items()}
    file = _file(out, "backbone.pth")
    _save(file, {"model": named})
    said = f"{file}: ViTDet's backbone for pictures of {grid} x {grid} patches; relative places begin at zero, the pyramid (simfp_*) in the detector"
    return Exported(file, "ViTDet's backbone", difference, (said, _arrived(file, difference)))


def dit_state(encoder: Encoder) -> dict[str, Tensor]:
    """The four layers of each block by DiT's names. Its norms have no scale and shift: the encoder's go into the layers behind them."""
    blocks = blocks_of(encoder)
    for i in range(len(encoder.model.blocks)):
        for norm, layer in (("norm1", "attn.qkv"), ("norm2", "mlp.fc1")):
            scale, shift = (blocks.pop(f"blocks.{i}.{norm}.{name}") for name in ("weight", "bias"))
            weight = blocks[f"blocks.{i}.{layer}.weight"]
            blocks[f"blocks.{i}.{layer}.bias"] += weight @ shift
            blocks[f"blocks.{i}.{layer}.weight"] = weight * scale
    return blocks


def dit_block(state: Mapping[str, Tensor], i: int, x: Tensor, modulation: Tensor, heads: int, exact: bool = False) -> Tensor:
    """DiT's block on x (B, N, D), written out; `modulation` (B, 6, D): shift, scale and gate of attention, then of the layers behind it.

    `exact`: GELU as the encoder has it; DiT's is the approximation by tanh.
    """
    layer = lambda name, y: F.linear(y, state[f"blocks.{i}.{name}.weight"], state[f"blocks.{i}.{name}.bias"])  # noqa: E731
    shift1, scale1, gate1, shift2, scale2, gate2 = modulation.unsqueeze(2).unbind(1)  # (B, 1, D) each
    y = F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale1) + shift1
    q, k, v = layer("attn.qkv", y).unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)  # (B, heads, N, d) each
    x = x + gate1 * layer("attn.proj", F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
    y = F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale2) + shift2
    return x + gate2 * layer("mlp.fc2", F.gelu(layer("mlp.fc1", y), approximate="none" if exact else "tanh"))


@torch.inference_mode()
def export_dit(encoder: Encoder, out: str | Path, witness: Witness) -> Exported:
    """Write the blocks of a diffusion transformer (OUT, or OUT/dit.pth): attention and the layers behind it. All else begins in DiT's own code."""
    state, model = dit_state(encoder), encoder.model.eval()
    is_trained(encoder, witness)
    heads = model.blocks[0].attn.num_heads
    x = model.patch_embed(witness.pictures[:2].float()).reshape(min(2, len(witness.pictures)), -1, model.embed_dim)  # (B, N, D)
    through = torch.tensor([0.0, 0.0, 1.0, 0.0, 0.0, 1.0]).view(1, 6, 1).expand(len(x), 6, model.embed_dim)  # no shift, no scale, gates open
    found = x
    for i in range(len(model.blocks)):
        found = dit_block(state, i, found, through, heads, exact=True)
    difference = Witness(witness.pictures, model.blocks(x)).difference(found, "DiT's blocks, gates open,")
    file = _file(out, "dit.pth")
    _save(file, state)
    said = f"{file}: {len(model.blocks)} blocks of a DiT of width {model.embed_dim} with {heads} heads: load_state_dict(…, strict=False); the rest begins anew"
    return Exported(file, "a diffusion transformer's blocks", difference, (said, _arrived(file, difference)))


@torch.inference_mode()
def _runs(network: Any, encoder: Encoder, grid: int) -> None:
    """One picture goes through the network at its full size."""
    side = grid * (encoder.patch_size or (16, 16))[0]
    if not bool(network.forward_features(torch.zeros(1, encoder.in_chans, side, side)).isfinite().all()):
        raise Refused("the network's features are not finite: nothing was written")


def _arrived(file: Path, difference: float) -> str:
    return f"{file}: where both compute the same, it differs by at most {small(difference)} from the encoder's own blocks"


def _file(out: str | Path, name: str) -> Path:
    out = Path(out)
    file = out if re.fullmatch(r"\.pth?", out.suffix) else out / name
    if (file.parent / "config.yaml").is_file():
        raise Refused(f"--out {out} is a run: give another folder")
    return file


def _save(file: Path, content: Any) -> None:
    """In PyTorch's format, as these codes read it: plain tensors, which `torch.load(weights_only=True)` opens."""
    held = io.BytesIO()
    torch.save({name: _kept(value) for name, value in content.items()}, held)
    write(file, held.getvalue())


def _kept(value: Any) -> Any:
    return {name: _kept(inner) for name, inner in value.items()} if isinstance(value, Mapping) else value.detach().cpu().contiguous().clone()
