"""unmask: pre-train image encoders by masked image modelling.

    run = unmask.pretrain(method="mae", data="photos/", out="runs/first")
    encoder = unmask.load_encoder(run)  # a timm model that never masks

The verbs of the command line, under the same names. `import unmask` imports no torch: a name is imported when it is used.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unmask import methods as methods
    from unmask.api import distill as distill
    from unmask.api import embed as embed
    from unmask.api import evaluate as evaluate
    from unmask.api import export as export
    from unmask.api import inspect as inspect
    from unmask.api import load_encoder as load_encoder
    from unmask.api import load_transform as load_transform
    from unmask.api import pretrain as pretrain
    from unmask.api import reconstruct as reconstruct
    from unmask.api import report as report
    from unmask.api import resume as resume
    from unmask.api import runs as runs
    from unmask.api import show_encoder as show_encoder
    from unmask.api import show_mask as show_mask
    from unmask.api import show_views as show_views
    from unmask.api import show_weights as show_weights
    from unmask.api import train_tokenizer as train_tokenizer
    from unmask.api.compare import compare as compare
    from unmask.api.neighbours import neighbours as neighbours
    from unmask.errors import Failed as Failed
    from unmask.errors import Interrupted as Interrupted
    from unmask.errors import Refused as Refused
    from unmask.load import load as load

__version__ = "0.1.0"

VERBS = (
    *("pretrain", "distill", "resume", "train_tokenizer"),
    *("evaluate", "compare", "embed", "neighbours"),
    *("reconstruct", "inspect", "report", "runs"),
    *("show_encoder", "show_mask", "show_views", "show_weights"),
    *("export", "load_encoder", "load_transform"),
)
PLACES = dict.fromkeys(VERBS, "unmask.api")
PLACES |= {"load": "unmask.load", "Refused": "unmask.errors", "Failed": "unmask.errors", "Interrupted": "unmask.errors"}
__all__ = ["__version__", "methods", *PLACES]


class _Package(ModuleType):
    """A package in which a verb goes before the file of the same name: `unmask.load` is the function, whoever imported the file."""

    def __setattr__(self, name: str, value: Any) -> None:
        if isinstance(value, ModuleType) and name in PLACES:
            value = getattr(importlib.import_module(PLACES[name]), name)
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> Any:
    if name == "methods":
        return importlib.import_module("unmask.methods")
    if name not in PLACES:
        raise AttributeError(f"module 'unmask' has no attribute '{name}'")
    return getattr(importlib.import_module(PLACES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
