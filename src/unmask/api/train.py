"""Pre-train, and go on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from unmask.api.asked import check_data
from unmask.encoders import names
from unmask.errors import Refused
from unmask.interchange.naming import FORMS, identify
from unmask.methods import METHODS, TOKENIZERS, TRANSFERS
from unmask.recipe import Recipe, settle


@dataclass(frozen=True)
class Lesson:
    """How the student learns."""

    by: Literal["distill", "mae_lite"] = "distill"  # the teacher's features of whole pictures; or its attention, beside MAE's own question


def pretrain(method: Any = None, data: Any = None, out: str | Path | None = None, *, config: str | Path | None = None, **settings: Any) -> Path:
    """Pre-train an encoder on pictures; the path of the run folder.

    `method` is a name, `my_method.py:Name` or an instance such as `unmask.methods.MAE(mask_ratio=0.6)`; `data` a path or
    whatever else DATA may be, also a torch Dataset; `config` a YAML file of settings, above which the others go.
    """
    recipe = settle(method, data, config, settings)
    if recipe.name in TRANSFERS:
        raise Refused(f"{recipe.name} pre-trains nothing: unmask evaluate {recipe.name} ENCODER DATA")
    if recipe.name in TOKENIZERS:
        raise Refused(f"{recipe.name} makes a tokenizer, no encoder: unmask tokenizer train {recipe.name} DATA --out RUN")
    return _begun(recipe, out)


def distill(teacher: str | Path, data: Any = None, out: str | Path | None = None, *, by: str = "distill", **settings: Any) -> Path:
    """Train a small encoder to say or see what a larger one does, as `pretrain` with the method `by`; the path of the run folder.

    `teacher` is any ENCODER. Without `model` the network is chosen as for any run.
    """
    if "method.teacher" in settings:
        raise Refused(f"the teacher is said twice: {teacher} and method.teacher={settings['method.teacher']}")
    if by not in ("distill", "mae_lite"):
        raise Refused(f"--by {by}: a student learns by distill or mae_lite")
    return pretrain(by, data, out, **{"method.teacher": str(teacher), **settings})


def train_tokenizer(method: Any = None, data: Any = None, out: str | Path | None = None, *, config: str | Path | None = None, **settings: Any) -> Path:
    """Train a vocabulary of picture squares, as `pretrain` trains an encoder; the path of the run folder, which is a `--method.tokenizer`."""
    if isinstance(method, str) and method in METHODS:
        raise Refused(f"{method} trains an encoder: unmask pretrain {method} DATA --out RUN; vocabularies are: {', '.join(TOKENIZERS)}")
    return _begun(settle(method, data, config, settings), out)


def _begun(recipe: Recipe, out: str | Path | None) -> Path:
    """Train as the recipe says; what can be refused without torch is refused before."""
    if out is None:
        raise Refused("a run wants out, the folder to make (--out RUN)")
    _refuse(recipe, Path(out))
    from unmask.training.start import begin

    return begin(recipe, Path(out))


def resume(run: str | Path, *, data: Any = None, force: bool = False, **settings: Any) -> Path:
    """Go on exactly where a run stopped; the path of the run folder. Settings that change the result want `force`.

    `data` is wanted again only where the run was given something else than a path.
    """
    config = Path(run) / "config.yaml"
    if not config.is_file():
        raise Refused(f"{run} is no run folder: there is no config.yaml in it")
    settle(None, None, config, settings)
    from unmask.training.start import again

    return again(Path(run), force, settings | ({} if data is None else {"data": data}))


def _refuse(recipe: Recipe, out: Path) -> None:
    """Refuse without torch what can be refused: data, a folder that is taken, names and files that do not exist."""
    from unmask.run import folder

    check_data(recipe.data)
    folder.refuse_taken(out)
    if recipe.trunk.model is not None:
        names.check(recipe.trunk.model, kinds=vars(type(recipe.method)).get("kinds", names.TRAINABLE))
    if recipe.trunk.init is not None:
        identify(recipe.trunk.init)
    if recipe.name in TOKENIZERS:
        _refuse_unused(recipe)
    for name in vars(type(recipe.method)).get("needs", ()):
        word = getattr(recipe.method, name)
        if word is None:
            prefix = "" if recipe.name in TOKENIZERS else "method."
            made = "RUN (unmask tokenizer train dvae DATA --out RUN makes one)" if name == "tokenizer" else f"ENCODER ({FORMS})"
            raise Refused(f"{recipe.name} needs a {name}: --{prefix}{name} {made}")
        if name != "tokenizer":
            identify(word)
        elif not Path(word).exists():
            raise Refused(f"--method.tokenizer: there is no run or file {word}")
    if getattr(recipe.method, "teacher", None) is not None and "teacher" not in vars(type(recipe.method)).get("needs", ()):
        identify(recipe.method.teacher)
    if "continues" in vars(type(recipe.method)) and recipe.method.continues and recipe.trunk.init is None:
        raise Refused(f"{recipe.name} goes on from an encoder that is pre-trained: --init RUN (unmask pretrain mae DATA --out RUN makes one)")
    captions = recipe.input.captions
    if captions is not None and "text" not in vars(recipe.method):
        raise Refused(f"--captions: {recipe.name} reads none; modern_mae does")
    if captions is not None and not Path(captions).is_file():
        raise Refused(f"--captions: there is no file {captions}")
    labels = recipe.input.labels
    if labels is not None and not isinstance(labels, str | Path):
        raise Refused("labels: a run takes the path of a label file, so that it can be opened again; arrays are for evaluate and embed")
    if labels is not None and not Path(labels).is_file():
        raise Refused(f"--labels: there is no file {labels}")


def _refuse_unused(recipe: Recipe) -> None:
    """Refuse settings of an encoder that a tokenizer would take and not look at: better said now than found after a long run."""
    own = bool(vars(type(recipe.method)).get("network"))  # a tokenizer made of a network of --model
    unused = ("init", "activation_checkpointing") if own else ("model", "patch_size", "width", "depth", "heads", "init", "activation_checkpointing")
    if given := [f"--{name}" for name in unused if getattr(recipe.trunk, name)]:
        why = "it begins anew" if own else f"its network is its own, of the size that --hidden, --blocks and --stride say (unmask tokenizer train {recipe.name} --help)"
        raise Refused(f"{recipe.name} does not use {' '.join(given)}: {why}")
