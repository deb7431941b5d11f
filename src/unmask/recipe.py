"""A recipe: everything that a run is made from, settled out of the paper's numbers, a file and what a person says. No torch here."""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from unmask import settings
from unmask.errors import Refused
from unmask.methods import LEARNERS, TOKENIZERS, TRANSFERS, place
from unmask.methods.statement import known, source_file
from unmask.options import Group, check, dump, layered, load
from unmask.settings import Crops, Input, Lessons, Start, Train, Trunk, Views

NETWORK = (Group("network", Trunk), Group("input", Input))
ENCODER = (Group("encoder", Start), Group("pictures", Lessons))
PATHS = ("labels", "captions", "init", "encoder", "val")  # settings that are paths, or names that stay what they are


@dataclass(frozen=True)
class Recipe:
    """Everything that a run is made from, each setting in its class; `given` names those that a person chose."""

    name: str  # of the method, or of the way to train an encoder further, as a person writes it
    method: Any
    data: Any
    trunk: Any  # Trunk, or Start where an encoder is trained further
    input: Any  # Input, or Lessons
    train: Train
    views: Views | Crops
    given: frozenset[str]

    def lines(self) -> dict[str, Any]:
        """The flat settings of config.yaml, by the names that the command line has; paths are absolute, so that it runs from anywhere."""
        groups = groups_of(self.name, self.method)
        parts = (self.trunk, self.input, self.train, self.views, self.method)
        flat = {group.prefix + field.name: getattr(part, field.name) for group, part in zip(groups, parts) for field in fields(part)}
        options = {name: option for group in groups for name, option in group.options().items()}
        flat = check(flat, options)  # a 40 that means 40.0 is written as the number it is
        flat |= {name: absolute(flat[name]) for name in PATHS if name in flat}
        return {"method": absolute(self.name), "data": absolute(self.data) if isinstance(self.data, str) else repr(self.data)} | flat

    def text(self) -> str:
        """config.yaml."""
        return dump(self.lines())


def absolute(word: Any) -> Any:
    """A path as it is found from anywhere; names (`hf:owner/name`, `timm:NAME`, `mae`) stay what they are."""
    if not isinstance(word, str) or word.startswith(("hf:", "timm:", "random:")) or word in LEARNERS or (re.fullmatch(r"[\w.]+:\w+", word) and ".py:" not in word):
        return word
    return os.path.abspath(os.path.expanduser(word))


def groups_of(name: str, method: Any = None) -> list[Group]:
    """All settings of a run, in the order of `Recipe`: network, input, the paper's training and views, and the method's own fields.

    `method`: an instance; not given: what `name` says, without its imports.
    """
    cls, base, file = type(method), method, None
    if method is None:
        cls, base, file = known(name), None, source_file(place(name)[0])
    paper = [Group("training", Train, base=cls.paper), views_group(cls)]
    if name in TRANSFERS:
        return [*ENCODER, *paper, Group(cls.__name__.lower(), cls, file, "", base)]
    if name in TOKENIZERS:
        return [*NETWORK, *paper, Group(f"the tokenizer {cls.__name__}", cls, file, "", base)]
    return [*NETWORK, *paper, Group(f"the method {cls.__name__}", cls, file, "method.", base)]


def views_group(method: Any) -> Group:
    """The settings of a method's views; `method`: its class, an instance, its name, or None for views as MAE's."""
    holder: Any = known(method) if isinstance(method, str) else method
    views = Views() if holder is None else holder.views
    return Group("views of a picture while it trains", type(views), prefix="views.", base=views)


def name_of(method: Any) -> str:
    """The name or place of a method that is given as a name or as an instance."""
    if isinstance(method, str):
        place(method)
        return method
    cls = type(method)
    try:
        file = Path(inspect.getfile(cls))
    except (TypeError, OSError):
        raise Refused(f"the method {cls.__name__} stands in no file: write it to one, so that the run can be opened again") from None
    here = Path(settings.__file__).parents[1]  # the folder that holds `unmask`, where the places in METHODS begin
    ours = [name for name, where in LEARNERS.items() if here / where == file.with_name(f"{file.name}:{cls.__name__}")]
    return ours[0] if ours else f"{cls.__module__ if '.' in cls.__module__ else file}:{cls.__name__}"


def settle(method: Any, data: Any, config: str | Path | None, said: Mapping[str, Any]) -> Recipe:
    """One recipe out of the layers: dataclass < paper < YAML < words. What stays None is chosen later, for data and machine."""
    file = load(config) if config is not None else {}
    method, data = method if method is not None else file.get("method"), data if data is not None else file.get("data")
    for what, found in (("a method", method), ("data", data)):
        if found is None:
            raise Refused(f"a run wants {what}")
    if file.get("method") not in (None, method):  # another method above the file: the file's own settings of its method, and its views, fall away
        file = {key: value for key, value in file.items() if not key.startswith(("method.", "views."))}
    name = name_of(method)
    parts = groups_of(name, None if isinstance(method, str) else method)
    options = {name: option for group in parts for name, option in group.options().items()}
    below = {key: value for key, value in file.items() if key not in ("method", "data")}
    values = layered(check(below, options, f"{config}: "), check(said, options))
    trunk, read, train, views, own = (group.make(values) for group in parts)
    words = {name: absolute(getattr(own, name)) for name in vars(type(own)).get("needs", ())}  # encoders and tokenizers that a method wants
    words |= {name: absolute(word) for name in vars(type(own)).get("wants", ()) if (word := getattr(own, name)) and os.path.exists(word)}  # and may be given
    own = replace(own, **words) if words else own
    given = frozenset(name for name, value in values.items() if value is not None)
    return Recipe(name, own, data if not isinstance(data, Path) else str(data), trunk, read, train, views, given)
