"""The names of timm's models, read from its source text: a wrong `--model` is refused before timm and torch are imported."""

from __future__ import annotations

import importlib.util
import re
from functools import cache
from pathlib import Path

from unmask.errors import Refused
from unmask.options import suggestion

TRAINABLE = ("VisionTransformer", "Eva", "Beit", "SwinTransformer", "Hiera", "ConvNeXt")  # the families that can be masked
UNSAID = {"hiera": "Hiera"}  # files whose constructors do not say what they give
PATTERN = re.compile(r"^@register_model\s*\ndef (\w+)\([^)]*\)(?:\s*->\s*(\w+))?", re.MULTILINE)


@cache
def names() -> dict[str, str]:
    """Every model name of timm, and our own, with the class it gives where the text says so ('' elsewhere)."""
    spec = importlib.util.find_spec("timm")
    if spec is None or spec.origin is None:
        raise Refused("timm is not installed: pip install timm")
    paths = [*sorted((Path(spec.origin).parent / "models").glob("*.py")), *(Path(__file__).with_name(f"{own}.py") for own in ("post_norm", "coded"))]
    texts = ((UNSAID.get(path.stem, ""), path.read_text(encoding="utf-8")) for path in paths)
    return {name: kind or unsaid for unsaid, text in texts for name, kind in PATTERN.findall(text)}


def staged(name: str) -> bool:
    """Whether the network works in stages, whose last sees a square of 8 by 8 patches as one."""
    return names().get(name.partition(".")[0], "") in ("SwinTransformer", "Hiera", "ConvNeXt")


def check(name: str, said: str = "--model", kinds: tuple[str, ...] = TRAINABLE) -> None:
    """Refuse a name that timm does not have, or of a network that is none of `kinds`. The tag of `name.tag` (published weights) is left to timm."""
    known, base = names(), name.partition(".")[0]
    if base not in known:
        fit = [other for other, kind in known.items() if kind in kinds]
        raise Refused(f"{said}: timm has no model '{name}'{suggestion(base, fit)} (`unmask models` lists them)")
    if known[base] not in (*kinds, ""):
        wanted = f"{', '.join(kinds[:-1])} or {kinds[-1]}" if len(kinds) > 1 else kinds[0]
        raise Refused(f"{said}: {name} is a {known[base]}; choose a {wanted} of timm (`unmask models` lists them)")


def trainable() -> list[str]:
    """The models that can be pre-trained."""
    return sorted(name for name, kind in names().items() if kind in TRAINABLE)
