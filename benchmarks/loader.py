"""Pictures a second: our loader beside torchvision's ImageFolder + RandomResizedCrop + DataLoader, interleaved in one run.

    python benchmarks/loader.py [DATA] [--workers 0 2] [--rounds 3] [--pictures 2000]

DATA is a folder of class folders or a tar of them (default ../shared/data/imagenette224.tar, train part). Both sides read the same
files from a temporary folder, crop to 224 x 224 with bicubic interpolation, flip and normalise to float32 batches on the CPU.
A second table times the parts for one picture on one thread. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import torch
from PIL import Image

from unmask import seeds
from unmask.data.loader import Pictures
from unmask.data.sources import open_source
from unmask.data.statistics import Format
from unmask.data.views import crop_box, random_view, resized
from unmask.settings import Views

SIZE, BATCH = (224, 224), 64
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
DEFAULT = Path(__file__).resolve().parents[1].parent / "shared" / "data" / "imagenette224.tar"


def unpacked(data: str, folder: Path, count: int) -> Path:
    """The first pictures of DATA as files folder/<class>/<number>.jpg."""
    source = open_source(data)
    step = max(1, len(source) // count)
    for index in range(0, len(source), step):
        raw = source.raw(index)
        place = folder / (source.labels.names[source.labels.values[index]] if source.labels is not None else "all")
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{index}.jpg").write_bytes(raw if isinstance(raw, bytes) else Path(raw).read_bytes())
    return folder


def ours(folder: Path, workers: int, steps: int) -> tuple[float, float]:
    pictures = Pictures(open_source(str(folder)), Format(3, (0,) * 3, (255,) * 3, MEAN, STD), Views(), SIZE)
    stream = pictures.batches(BATCH, 0, steps + 2, workers=workers)
    return timed((pictures.finish(batch, "cpu") for batch in stream), steps)


def theirs(folder: Path, workers: int, steps: int) -> tuple[float, float]:
    from torch.utils.data import DataLoader
    from torchvision import transforms as t
    from torchvision.datasets import ImageFolder

    bicubic = t.InterpolationMode.BICUBIC
    crop = t.Compose([t.RandomResizedCrop(SIZE, (0.2, 1.0), interpolation=bicubic), t.RandomHorizontalFlip(), t.ToTensor(), t.Normalize(MEAN, STD)])
    data = DataLoader(ImageFolder(str(folder), crop), BATCH, shuffle=True, drop_last=True, num_workers=workers)
    return timed((x for _ in range(steps) for x, _ in data), steps)


def timed(batches, steps: int) -> tuple[float, float]:
    """Pictures a second of the clock, and of this process's CPU time, over `steps` batches; the first two (start of the workers) not counted."""
    for _ in range(2):
        next(batches)
    began, worked = time.perf_counter(), time.process_time()
    for _ in range(steps):
        assert next(batches).dtype == torch.float32
    seconds, work = time.perf_counter() - began, time.process_time() - worked
    batches.close()
    return steps * BATCH / seconds, steps * BATCH / work


def parts(folder: Path) -> dict[str, float]:
    """Microseconds of CPU time for one picture."""
    source, views = open_source(str(folder)), Views()
    few = [index for index in range(0, len(source), max(1, len(source) // 300)) if source.picture(index).bands == 3]
    boxes = {index: crop_box(*source.read(index).shape[:2], views, seeds.dice(0, "view", index)) for index in few}
    crops = {index: source.read(index)[top : top + h, left : left + w] for index, (top, left, h, w) in boxes.items()}

    def cost(work) -> float:
        best = float("inf")
        for _ in range(3):
            began = time.process_time()
            for index in few:
                work(index)
            best = min(best, (time.process_time() - began) / len(few))
        return round(best * 1e6, 1)

    return {
        "open": cost(source.picture),
        "open and decode": cost(source.read),
        "dice and box": cost(lambda index: crop_box(224, 224, views, seeds.dice(0, "view", index))),
        "resize (ours)": cost(lambda index: resized(crops[index], SIZE, "bicubic")),
        "resize (Pillow)": cost(lambda index: Image.fromarray(crops[index]).resize(SIZE, Image.Resampling.BICUBIC)),
        "one whole view": cost(lambda index: random_view(source.picture(index), SIZE, views, seeds.dice(0, "view", index), 3, True)),
    }


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("data", nargs="?", default=f"{DEFAULT}/train")
    words.add_argument("--workers", type=int, nargs="+", default=[0, 2])
    words.add_argument("--rounds", type=int, default=3)
    words.add_argument("--pictures", type=int, default=2000)
    chosen = words.parse_args()
    torch.set_num_threads(1)
    result: dict = {"batch": BATCH, "size": SIZE, "rounds": chosen.rounds}
    with tempfile.TemporaryDirectory() as place:
        folder = unpacked(chosen.data, Path(place), chosen.pictures)
        result["microseconds"] = parts(folder)
        for name, value in result["microseconds"].items():
            print(f"{name:18} {value:8.1f} µs")
        for workers in chosen.workers:
            rates: dict[str, list[tuple[float, float]]] = {"unmask": [], "torchvision": []}
            for _ in range(chosen.rounds):
                rates["unmask"].append(ours(folder, workers, 12))
                rates["torchvision"].append(theirs(folder, workers, 12))
            for column, clock in enumerate(("clock", "CPU time")[: 1 if workers else 2]):  # CPU time does not see the workers'
                middle = {name: round(statistics.median(values[column] for values in found), 1) for name, found in rates.items()}
                result[f"pictures a second of {clock}, {workers} workers"] = middle
                times = middle["unmask"] / middle["torchvision"]
                print(
                    f"{workers} workers, {clock}: unmask {middle['unmask']}, torchvision {middle['torchvision']} pictures a second ({times:.2f} times)"
                )
    print(json.dumps(result))


if __name__ == "__main__":
    main()
