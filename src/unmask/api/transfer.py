"""Train an encoder further on labels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from unmask.api.asked import check_data
from unmask.errors import Refused
from unmask.interchange.naming import identify
from unmask.recipe import settle


def teach(protocol: str, encoder: Any = None, data: Any = None, out: str | Path | None = None, config: str | Path | None = None, **settings: Any) -> dict[str, Any]:
    """Train an encoder further by `finetune`: a run like any other, in `out`; the row of its evaluation.

    `out` not given: a folder beside, named after the encoder and the protocol.
    """
    recipe = settle(protocol, data, config, settings | ({} if encoder is None else {"encoder": str(encoder)}))
    name = recipe.trunk.encoder
    if name is None:
        raise Refused(f"ENCODER is missing: unmask evaluate {protocol} ENCODER DATA --out RUN")
    identify(name)
    check_data(recipe.data)
    if recipe.input.val is not None:
        check_data(recipe.input.val)
    folder = Path(out) if out is not None else Path(named(name, protocol, recipe.trunk.scratch))
    from unmask.run.folder import refuse_taken

    refuse_taken(folder)
    from unmask.training.start import begin

    begin(recipe, folder)
    row = json.loads((folder / "evaluations.jsonl").read_text(encoding="utf-8").splitlines()[-1])
    low, high = row["interval"]
    print(f"{protocol} of {name}: {row['top1']:.1f} % (95 % interval {low:.1f} to {high:.1f})")
    return row


def named(encoder: str, protocol: str, scratch: bool) -> str:
    """The folder of a run that nobody named: beside the encoder's run, or here."""
    end = f"-{protocol}" + ("-scratch" if scratch else "")
    if encoder.startswith(("timm:", "random:")) and not Path(encoder).exists():
        return encoder.replace(":", "-").replace("/", "-") + end
    path = Path(encoder)
    return str(path.with_name(path.stem + end) if path.is_file() else path.parent / (path.resolve().name + end))
