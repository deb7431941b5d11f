"""One training step of our MAE beside that of Hugging Face's ViTMAE, measured in turn in one process.

A step is forward, backward and AdamW on one batch: same network, same sizes, same pictures, same noise. In every round each
contestant takes one step, and the order turns from round to round, so that a busy machine is busy for all of them. What is
compared is the ratio within a round. Contestants:

    unmask             our step
    hugging_face       ViTMAEForPreTraining of transformers
    without_last_rows  our step, computing every row of the decoder's last block (what `decoders.last_rows` saves)

    python benchmarks/speed.py [--model vit_base_patch16_224] [--batch 8] [--rounds 10] [--device cpu|cuda] [--compile]

It needs `pip install transformers`. The result goes to benchmarks/results/speed-<device>.json.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from record import RESULTS, keep, machine
from torch import Tensor, nn

from unmask import decoders
from unmask.methods.mae import MAE

SEED = 0
DECODER = {"decoder_width": 512, "decoder_depth": 8, "decoder_heads": 16}


class Clock:
    """Seconds between marks, the device's work included."""

    def __init__(self, device: str):
        self.device = device
        self.laps: dict[str, float] = {}
        self.last = self.now()

    def now(self) -> float:
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def lap(self, name: str) -> None:
        now = self.now()
        self.laps[name] = self.laps.get(name, 0.0) + now - self.last
        self.last = now


@dataclass(frozen=True)
class Contestant:
    """One implementation: how it computes its loss, and where its encoder ends and its decoder begins."""

    loss: Callable[[Tensor, Tensor], Tensor]  # of pictures (B, C, H, W) and noise (B, N)
    encoder: nn.Module
    decoder: nn.Module
    seam: Callable[[Any], Tensor]  # a tensor of the encoder's output: its gradient is ready when the decoder's backward pass is done
    optimizer: torch.optim.Optimizer
    trained: int

    def step(self, x: Tensor, noise: Tensor, precision: str) -> dict[str, float]:
        """Seconds of one training step; `cpu`: those that the process spent on processors, which a busy machine stretches less."""
        clock, before = Clock(x.device.type), time.process_time()
        self.train(x, noise, precision, clock)
        return {"step": sum(clock.laps.values()), "cpu": time.process_time() - before}

    def parts(self, x: Tensor, noise: Tensor, precision: str) -> dict[str, float]:
        """Seconds of the parts of one training step, read at the seams between its modules."""
        clock = Clock(x.device.type)

        def encoded(module, inputs, output):
            clock.lap("encoder forward")
            self.seam(output).register_hook(lambda gradient: clock.lap("decoder backward"))

        hooks = [
            self.encoder.register_forward_pre_hook(lambda module, inputs: clock.lap("masking")),  # Hugging Face masks in the encoder
            self.encoder.register_forward_hook(encoded),
            self.decoder.register_forward_hook(lambda module, inputs, output: clock.lap("decoder forward")),
        ]
        self.train(x, noise, precision, clock)
        for hook in hooks:
            hook.remove()
        return clock.laps

    def train(self, x: Tensor, noise: Tensor, precision: str, clock: Clock) -> None:
        with torch.autocast(x.device.type, torch.bfloat16) if precision == "bf16-mixed" else nullcontext():
            loss = self.loss(x, noise)
        clock.lap("target and loss")
        loss.backward()
        clock.lap("encoder backward")
        self.optimizer.step()
        self.optimizer.zero_grad()
        clock.lap("optimiser")


def ours(words: argparse.Namespace) -> tuple[Contestant, nn.Module]:
    learner = MAE(**DECODER).build(words.model, (words.img_size, words.img_size)).to(words.device)
    run = torch.compile(learner) if words.compile else learner
    decoder = learner.objectives["pixels"].decoder
    mine = Contestant(lambda x, noise: run(x, noise=noise)["loss"], learner.encoder, decoder, lambda features: features.patches, *training(learner))
    return mine, learner


def theirs(words: argparse.Namespace, learner: nn.Module) -> Contestant:
    """ViTMAEForPreTraining with the sizes of our learner."""
    from transformers import ViTMAEConfig, ViTMAEForPreTraining

    trunk = learner.encoder.trunk
    config = ViTMAEConfig(
        image_size=words.img_size,
        patch_size=learner.encoder.patch[0],
        hidden_size=trunk.embed_dim,
        num_hidden_layers=len(trunk.blocks),
        num_attention_heads=trunk.blocks[0].attn.num_heads,
        intermediate_size=trunk.blocks[0].mlp.fc1.out_features,
        decoder_hidden_size=DECODER["decoder_width"],
        decoder_num_hidden_layers=DECODER["decoder_depth"],
        decoder_num_attention_heads=DECODER["decoder_heads"],
        decoder_intermediate_size=4 * DECODER["decoder_width"],
        layer_norm_eps=1e-6,
        norm_pix_loss=True,
        mask_ratio=0.75,
    )
    model = ViTMAEForPreTraining(config).to(words.device).train()
    run = torch.compile(model) if words.compile else model
    return Contestant(lambda x, noise: run(x, noise=noise).loss, model.vit, model.decoder, lambda output: output.last_hidden_state, *training(model))


def training(model: nn.Module) -> tuple[torch.optim.Optimizer, int]:
    """The same optimiser for everybody, and how many numbers it trains."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1.5e-4, betas=(0.9, 0.95), weight_decay=0.05, fused=True)
    return optimizer, sum(parameter.numel() for parameter in trained)


def contestants(words: argparse.Namespace) -> dict[str, Contestant]:
    mine, learner = ours(words)
    peer = theirs(words, learner)
    if mine.trained != peer.trained:
        raise SystemExit(f"not the same network: {mine.trained:,} trained parameters here, {peer.trained:,} there")

    def every_row(x, noise):
        with mock.patch.object(decoders, "last_rows", lambda block, x, rows: block(x)[:, -rows:]):
            return mine.loss(x, noise)

    return {"unmask": mine, "hugging_face": peer, "without_last_rows": replace(mine, loss=every_row)}


def in_turn(runners: dict[str, Callable[[], dict[str, float]]], rounds: int) -> dict[str, list[dict[str, float]]]:
    """The answers of each runner in each round; who begins turns from round to round."""
    names = list(runners)
    answers: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for turn in range(rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            answers[name].append(runners[name]())
    return answers


def summary(numbers: list[float]) -> dict[str, Any]:
    low, middle, high = statistics.quantiles(numbers, n=4, method="inclusive")
    return {"median": round(middle, 5), "quartiles": [round(low, 5), round(high, 5)], "least": round(min(numbers), 5)}


def measure(words: argparse.Namespace) -> dict[str, Any]:
    torch.manual_seed(SEED)
    everyone = contestants(words)
    x = torch.randn(words.batch, 3, words.img_size, words.img_size, device=words.device)
    noise = torch.rand(words.batch, everyone["unmask"].decoder.places.shape[1], device=words.device)
    steps = {name: partial(contestant.step, x, noise, words.precision) for name, contestant in everyone.items()}
    in_turn(steps, words.warmup)
    rows = in_turn(steps, words.rounds)
    result: dict[str, Any] = {
        "settings": vars(words) | DECODER | {"out": words.out.name, "mask_ratio": 0.75, "seed": SEED},
        "machine": machine(words.device),
        "trained_parameters": everyone["unmask"].trained,
    }
    for unit, kind in (("step", "seconds"), ("cpu", "processor_seconds")):
        result[f"{kind}_per_step"] = {name: summary([row[unit] for row in rows[name]]) for name in rows}
        peers = [name for name in rows if name != "unmask"]
        result[f"ratio_of_{kind}"] = {f"unmask / {name}": summary([a[unit] / b[unit] for a, b in zip(rows["unmask"], rows[name])]) for name in peers}
    if not words.compile:  # one graph has no seams
        split = {name: partial(everyone[name].parts, x, noise, words.precision) for name in ("unmask", "hugging_face")}
        laps = in_turn(split, words.rounds)
        result["parts_seconds"] = {name: {part: summary([lap[part] for lap in laps[name]])["median"] for part in laps[name][0]} for name in laps}
    return result


def show(result: dict[str, Any]) -> None:
    settings, where = result["settings"], result["machine"]
    print(f"{settings['model']}, batch {settings['batch']}, {settings['precision']}, {where['device_name']}, {where['threads']} threads")
    for kind in ("seconds", "processor_seconds"):
        print(kind.replace("_", " ") + ": median (quartiles, least)")
        for name, row in (result[f"{kind}_per_step"] | result[f"ratio_of_{kind}"]).items():
            print(f"  {name:28s} {row['median']:.4f} ({row['quartiles'][0]:.4f} to {row['quartiles'][1]:.4f}, {row['least']:.4f})")
    for name, parts in result.get("parts_seconds", {}).items():
        print(f"  {name}: " + ", ".join(f"{part} {seconds:.3f}" for part, seconds in parts.items()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="vit_base_patch16_224", help="a timm VisionTransformer with one class token")
    parser.add_argument("--img_size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--warmup", type=int, default=2, help="rounds that are not counted")
    parser.add_argument("--threads", type=int, help="CPU threads; not given: torch's choice")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--precision", choices=("32-true", "bf16-mixed"), help="not given: 32-true on the CPU, bf16-mixed on CUDA")
    parser.add_argument("--compile", action="store_true", help="torch.compile all of them")
    parser.add_argument("--out", type=Path, default=RESULTS, help="the folder of the result")
    words = parser.parse_args()
    words.precision = words.precision or ("bf16-mixed" if words.device == "cuda" else "32-true")
    if words.threads:
        torch.set_num_threads(words.threads)
    result = measure(words)
    show(result)
    print(keep("-".join(["speed", words.device] + ["compiled"] * words.compile), result, words.out))


if __name__ == "__main__":
    main()
