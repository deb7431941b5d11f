"""What evaluation does to one picture, as a transform for code of one's own (`unmask.load_transform` gives it).

It goes the way of `unmask evaluate` and `unmask embed`: opened by `images`, cut by `views.part` and `views.centre_view`, scaled by
`views.Finish`. So features that are computed outside equal those that were measured. How an encoder sees DATA is settled here, too.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from unmask.data.images import open_picture
from unmask.data.quarantine import BadSample
from unmask.data.source import Source
from unmask.data.statistics import Format, survey
from unmask.data.views import Finish, centre_view, part
from unmask.errors import Refused
from unmask.interchange.timm import Encoder


class Transform:
    """One picture to the network's input (C, H, W), float32: the centre, scaled by the encoder's range, mean and deviation.

    A picture is a path, a Pillow image, or an array (H, W) or (H, W, C) in the units that the encoder was trained on: uint8 for 8-bit
    pictures, else whatever the files held (uint16, float32 …), any number of channels. ValueError says why a picture cannot be used.
    It can be pickled, so a DataLoader's workers take it.
    """

    def __init__(self, encoder: Encoder):
        form = format_of(encoder)
        self.img_size, self.in_chans, self.eight_bit = encoder.img_size, encoder.in_chans, form.eight_bit
        self.low, self.high, self.mean, self.std = form.low, form.high, form.mean, form.std
        self.window, self.tile = form.window, encoder.tile
        self._finish = Finish(form.low, form.high, form.mean, form.std, form.eight_bit)

    def __call__(self, picture: str | os.PathLike | np.ndarray | Image.Image) -> Tensor:
        if not isinstance(picture, str | os.PathLike | np.ndarray | Image.Image):
            kind = type(picture).__name__
            raise ValueError(f"a {kind} is no picture: give a path, a Pillow image, or an array (H, W) or (H, W, C) in stored units")
        raw = os.fspath(picture) if isinstance(picture, os.PathLike) else picture
        try:
            opened = part(open_picture(raw).under(self.window), self.tile, None)
            x = centre_view(opened, self.img_size, self.in_chans, self.eight_bit)  # (C, H, W)
        except BadSample as error:
            raise ValueError(f"{raw}: {error}" if isinstance(raw, str) else str(error)) from None
        return self._finish(x.unsqueeze(0), None, "cpu")[0]

    def __repr__(self) -> str:
        height, width = self.img_size
        span = "8-bit" if self.eight_bit else f"range {_short(self.low)} to {_short(self.high)}"
        return f"Transform({height}x{width}, {self.in_chans} channels, {span}, mean {_short(self.mean)}, std {_short(self.std)})"


def format_of(encoder: Encoder) -> Format:
    """How stored numbers become this encoder's input; Refused where no mean and std are known."""
    if encoder.mean is None or encoder.std is None:
        raise Refused(f"no mean and std are known for {encoder.source} with {encoder.in_chans} channels: they come with a trained encoder")
    low, high = (value * encoder.in_chans if len(value) == 1 else value for value in (encoder.low, encoder.high))
    return Format(encoder.in_chans, low, high, encoder.mean, encoder.std, window=encoder.window)


def format_for(encoder: Encoder, source: Source, window: Any = None, seed: int = 0, max_bad_share: float = 0.05) -> Format:
    """How an encoder sees DATA: with the numbers that it trained with, or measured ones where it has none.

    A `window` that is asked for goes above its own. An encoder of 8-bit pictures sees deeper ones scaled as they are measured here.
    """
    own = encoder.mean is not None and encoder.std is not None
    if own and window is None and not (format_of(encoder).eight_bit and _deep(source)):
        return format_of(encoder)
    bands = None if own else encoder.in_chans
    found = survey(source, bands, seed=seed, max_bad_share=max_bad_share, tile=encoder.tile, window=encoder.window if window is None else window)
    if not own:
        return found
    low, high = (value * encoder.in_chans if len(value) == 1 else value for value in (found.low, found.high))
    if len(low) != encoder.in_chans:
        raise Refused(f"{encoder.source} looks at {encoder.in_chans} channels, the pictures have {found.in_chans}")
    return Format(encoder.in_chans, low, high, encoder.mean, encoder.std, found.said, found.size, found.window)  # type: ignore[arg-type]


def _deep(source: Source, most: int = 16) -> bool:
    """Whether the first pictures have more than 8 bits, most of them."""
    kinds = []
    for index in range(min(most, len(source))):
        try:
            kinds.append(source.picture(index).eight_bit)
        except BadSample:
            continue
    return 2 * sum(kinds) < len(kinds)


def _short(numbers: Any) -> str:
    shown = " ".join(f"{number:.4g}" for number in numbers[:4])
    return shown if len(numbers) <= 4 else f"{shown} …"
