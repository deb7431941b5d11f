"""How stored numbers become the network's: what a run keeps, and an encoder's file says, of its pictures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from unmask.data.raster import Window


@dataclass(frozen=True)
class Format:
    """How stored numbers become the network's: x = ((stored - low) / (high - low), cut to [0, 1], - mean) / std, per channel.

    `window`: which grey values a DICOM file gives (see `Picture.under`); `size`: median height and width of what is looked at of the
    pictures (None: not measured); `said`: one line for each decision, for a person.
    """

    in_chans: int
    low: tuple[float, ...]
    high: tuple[float, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    said: tuple[str, ...] = ()
    size: tuple[int, int] | None = None
    window: Window = None

    def __post_init__(self):
        for name in ("low", "high", "mean", "std"):
            numbers = tuple(float(number) for number in getattr(self, name))
            if len(numbers) != self.in_chans:
                raise ValueError(f"{name} has {len(numbers)} numbers for {self.in_chans} channels")
            object.__setattr__(self, name, numbers)
        object.__setattr__(self, "said", tuple(self.said))
        object.__setattr__(self, "size", tuple(self.size) if self.size is not None else None)
        object.__setattr__(self, "window", tuple(self.window) if isinstance(self.window, list) else self.window)

    @property
    def eight_bit(self) -> bool:
        """Whether this is the range of 8-bit pictures (measured ranges never are exactly this)."""
        return set(self.low) == {0.0} and set(self.high) == {255.0}

    def as_dict(self) -> dict:
        return asdict(self)

    @classmethod
    def of(cls, kept: Mapping[str, Any]) -> Format:
        """What `as_dict` gave, in this version or an older one."""
        return cls(**{field.name: kept[field.name] for field in fields(cls) if field.name in kept})
