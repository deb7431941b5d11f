"""Kill a run again and again with SIGKILL at random moments; its final weights are those of the run that was never killed.

    python benchmarks/kill.py --kills 10                    # pictures of its own
    python benchmarks/kill.py --data photos/ --kills 12     # yours

Everything goes through the command line. Each life gets another number of workers; one kill in five comes at any moment of
a life, start-up included, the others while steps, checkpoints and measurements go on. Written to results/kill.json: how often it was killed, at which steps, and the
largest difference of the weights (wanted: exactly 0).
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import record
import torch
from safetensors.torch import load_file

STEPS = 400
NETWORK = "--model vit_tiny_patch16_224 --width 64 --depth 3 --heads 2 --patch_size 8 --img_size 32 --method.decoder_width 32 --method.decoder_depth 1"
SETTINGS = f"{NETWORK} --steps {STEPS} --batch_size 64 --checkpoint_every 7 --monitor_every 40 --accelerator cpu --seed 11"


def own_pictures(path: Path) -> Path:
    """Two hundred smooth random pictures with four kinds of label."""
    draw = np.random.default_rng(0)
    smooth = np.cumsum(np.cumsum(draw.normal(size=(200, 40, 40, 3)), 1), 2)
    low, high = smooth.min((1, 2, 3), keepdims=True), smooth.max((1, 2, 3), keepdims=True)
    np.savez(path, images=((smooth - low) / (high - low) * 255).astype(np.uint8), labels=np.arange(200) % 4)
    return path


def start(words: list[str], log: Path) -> subprocess.Popen:
    """One process of `unmask`, with its readers in a group of its own."""
    with open(log, "a") as out:
        return subprocess.Popen([sys.executable, "-m", "unmask", *words], stdout=out, stderr=out, stdin=subprocess.DEVNULL, start_new_session=True)


def checked(words: list[str], log: Path, run: Path) -> tuple[float, float]:
    """Run one command to its end; the seconds before its first step, and after."""
    began, process = time.perf_counter(), start(words, log)
    first = stepped(process, run)
    if process.wait():
        raise SystemExit(f"failed: unmask {' '.join(words)}\n{log.read_text()[-2000:]}")
    return first - began, time.perf_counter() - first


def stepped(process: subprocess.Popen, run: Path) -> float:
    """Wait until a process has written a step of its own, or has ended; when that was."""
    rows = run / "metrics.jsonl"
    before = rows.stat().st_mtime_ns if rows.is_file() else 0
    while process.poll() is None:
        if rows.is_file() and rows.stat().st_mtime_ns != before and steps_of(run):
            break
        time.sleep(0.02)
    return time.perf_counter()


def steps_of(run: Path) -> list[int]:
    """The steps written down in a run, in their order; a line that a kill cut is left out."""
    path = run / "metrics.jsonl"
    steps = []
    for line in path.read_text().splitlines() if path.is_file() else ():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if "loss" in row:
            steps.append(row["step"])
    return steps


def killed(data: Path, run: Path, log: Path, kills: int, spans: tuple[float, float], dice: random.Random) -> list[dict[str, Any]]:
    """Start, kill, resume, kill …; what was there at each death."""
    first, deaths = ["pretrain", "mae", str(data), "--out", str(run), *SETTINGS.split()], []
    while len(deaths) < kills:
        words = ["resume", str(run)] if (run / "config.yaml").exists() else first
        workers = dice.choice((0, 1, 2))
        process = start([*words, "--workers", str(workers)], log)
        if dice.random() < 0.8:
            stepped(process, run)
            lives = dice.uniform(0, 2 / kills) * spans[1]
        else:
            lives = dice.uniform(0, spans[0])
        try:
            process.wait(lives)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            steps = steps_of(run)
            kept = sorted(path.name for path in run.glob("checkpoints/step-*"))
            deaths.append({"workers": workers, "step": steps[-1] if steps else 0, "checkpoint": int(kept[-1][5:]) if kept else None})
            print(f"kill {len(deaths)}: {deaths[-1]}", flush=True)
            continue
        if process.returncode:
            raise SystemExit(f"a resumed run failed:\n{log.read_text()[-2000:]}")
        break  # it was done before it could be killed
    return deaths


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=int(time.time()), help="of the moments")
    asked = parser.parse_args()
    dice, deaths, runs = random.Random(asked.seed), [], 0
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        data, log = asked.data.absolute() if asked.data else own_pictures(place / "pictures.npz"), place / "log"
        spans = checked(["pretrain", "mae", str(data), "--out", str(place / "whole"), *SETTINGS.split(), "--workers", "1"], log, place / "whole")
        print(f"the uninterrupted run: {spans[0]:.0f} s to its first step, {spans[1]:.0f} s from there", flush=True)
        plain, differences, lists = load_file(place / "whole" / "model.safetensors"), [], []
        while len(deaths) < asked.kills:  # several runs, where one is done before it was killed often enough
            run = place / f"killed-{runs}"
            runs += 1
            deaths += killed(data, run, log, asked.kills - len(deaths), spans, dice)
            checked(["resume", str(run)], log, run)
            found = load_file(run / "model.safetensors")
            differences.append(max(float((found[name].double() - plain[name].double()).abs().max()) for name in plain))
            lists.append(steps_of(run) == steps_of(place / "whole") == list(range(1, STEPS + 1)))
    result = {
        "kills": len(deaths),
        "runs": runs,
        "largest_difference": max(differences),
        "every_step_written_once": all(lists),
        "seed_of_the_moments": asked.seed,
        "seconds_to_the_first_step_and_from_there": [round(span, 1) for span in spans],
        "deaths": deaths,
        "settings": SETTINGS,
    }
    print(f"{len(deaths)} kills in {runs} runs: largest difference of the weights {max(differences)}, every step written once: {all(lists)}")
    print(record.keep("kill", result | record.machine("cpu")))
    sys.exit(bool(max(differences)) or not all(lists))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
