"""What verbs are asked, and what they share: settings as the command line reads them, data refused without torch, an encoder's sight.

No torch at import in this package: a verb imports what it needs when it is called. The comment at the end of a field's line is its help.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from unmask.errors import Refused
from unmask.options import Group, check
from unmask.settings import Views, Window, check_window, within

FEW = 256  # pictures below which starting workers takes longer than reading


@dataclass(frozen=True)
class Look:
    """How a frozen encoder looks at pictures: the same for every command that takes ENCODER."""

    img_size: tuple[int, int] | None = None  # height and width of the input (one number: square); not given: the encoder's own
    patch_size: int | None = None  # pixels a patch side, of random:NAME
    in_chans: int | None = None  # channels of the input, of random:NAME; not given: what the data has
    random: bool = False  # with the encoder's weights drawn anew: what its architecture reaches without training
    seed: int = 0  # of everything random
    batch_size: int = 64  # pictures at once
    workers: int | None = None  # processes that read and crop; not given: chosen for the machine
    accelerator: Literal["auto", "cpu", "cuda", "mps"] = "auto"  # where to compute
    max_bad_share: float = 0.05  # stop when more than this share of the pictures is unreadable
    tile: int | None = None  # of pictures that are larger, look at the middle window of this side; not given: as the encoder trained
    window: Window | None = None  # grey values from black to white where there are more than 8 bits; not given: as the encoder trained

    def __post_init__(self):
        within(self, "patch_size img_size in_chans batch_size", 1)
        within(self, "workers seed", 0)
        within(self, "max_bad_share", 0, 1)
        within(self, "tile", 1)
        check_window(self.window)


def settings_of(classes: Sequence[type], said: dict[str, Any], more: Sequence[Group] = ()) -> list[Any]:
    """A verb's settings, each class of them and of `more`, read as the command line reads them."""
    groups = [*(Group(cls.__name__.lower(), cls) for cls in classes), *more]
    values = check(said, {name: option for group in groups for name, option in group.options().items()})
    return [group.make(values) for group in groups]


def check_data(data: Any) -> None:
    """Refuse a path that is no DATA before torch is imported."""
    from unmask.data import sources

    for word in [data] if isinstance(data, str | Path) else data if isinstance(data, list | tuple) else []:
        if isinstance(word, str | Path):
            sources.check(str(word))


def check_labels(labels: Any) -> None:
    """Refuse a label file that is not there before torch is imported."""
    if isinstance(labels, str | Path) and not Path(labels).is_file():
        raise Refused(f"--labels: there is no file {labels}")


def sight_of(name: str | Path, data: Any, look: Look, labels: Any, opened: Any = None) -> tuple[Any, Any, dict[str, Any]]:
    """(the Encoder, DATA as it sees it, how to run it). A random network takes its channels, and what lacks statistics takes them, from DATA."""
    import torch

    from unmask.data.loader import Pictures
    from unmask.data.sources import open_source
    from unmask.data.statistics import survey
    from unmask.data.transform import format_for
    from unmask.interchange.encoder import load_encoder
    from unmask.training.pace import cores

    source = open_source(data, labels)
    for line in () if source is data else source.said:  # one that was opened before has been introduced before
        print(line)
    if opened is None:
        chans = look.in_chans
        if chans is None and str(name).startswith("random:"):
            chans = survey(source, None, seed=look.seed, max_bad_share=look.max_bad_share, tile=look.tile, window=look.window).in_chans
        opened = load_encoder(name, img_size=look.img_size, in_chans=chans, patch_size=look.patch_size, random=look.random, seed=look.seed)
        opened = replace(opened, tile=look.tile or opened.tile)
    form = format_for(opened, source, look.window, look.seed, look.max_bad_share)
    for line in form.said if opened.mean is not None else ():  # its own numbers did not fit: what was measured instead
        print(line)
    opened = replace(opened, mean=form.mean, std=form.std, low=form.low, high=form.high, window=form.window)
    pictures = Pictures(source, form, Views(), opened.img_size, look.seed, look.max_bad_share, tile=opened.tile)
    auto = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if look.accelerator not in ("auto", "cpu", auto):
        raise Refused(f"--accelerator {look.accelerator}: this machine has none")
    workers = look.workers if look.workers is not None else 0 if len(source) < FEW else min(8, cores())
    return opened, pictures, {"batch_size": look.batch_size, "workers": workers, "device": auto if look.accelerator == "auto" else look.accelerator}


def first_of(pictures: Any, count: int) -> tuple[Any, list[str]]:
    """The first `count` pictures that can be read, normalised, and their names."""
    import torch

    parts, names = [], []
    for x, _, said in pictures.still_batches(1):
        parts.append(x)
        names += [Path(name).name for name in said]
        if len(names) == count:
            break
    if not parts:
        raise Refused(f"none of the {len(pictures)} pictures can be read")
    return torch.cat(parts), names


def written(out: str | Path) -> Path:
    print(out)
    return Path(out)
