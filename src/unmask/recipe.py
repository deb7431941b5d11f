"""A recipe: everything that a run is made from, settled out of the paper's numbers, a file and what a person says. No torch here."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from unmask import settings
from unmask.errors import Refused
from unmask.methods import METHODS, place
from unmask.methods.statement import known, source_file
from unmask.options import Group, check, dump, layered, load
from unmask.settings import Input, Train, Trunk, Views

NETWORK = (Group("network", Trunk), Group("input", Input))


@dataclass(frozen=True)
class Recipe:
    """Everything that a run is made from, each setting in its class; `given` names those that a person chose."""

    name: str  # of the method, as a person writes it
    method: Any
    data: Any
    trunk: Trunk
    input: Input
    train: Train
    views: Views
    given: frozenset[str]

    def lines(self) -> dict[str, Any]:
        """The flat settings of config.yaml, by the names that the command line has."""
        parts = (("", self.trunk), ("", self.input), ("", self.train), ("views.", self.views), ("method.", self.method))
        flat = {prefix + field.name: getattr(part, field.name) for prefix, part in parts for field in fields(part)}
        return {"method": self.name, "data": self.data if isinstance(self.data, str) else repr(self.data)} | flat

    def text(self) -> str:
        """config.yaml."""
        return dump(self.lines())


def method_groups(method: Any) -> list[Group]:
    """The settings that a method brings: the paper's training and views, and its own fields (of its name, place or an instance)."""
    cls, base, file = type(method), method, Path(settings.__file__)
    if isinstance(method, str):
        cls, base, file = known(method), None, source_file(place(method)[0])
    paper = [Group("training", Train, base=cls.paper), Group("views of a picture while it trains", Views, prefix="views.", base=cls.views)]
    return [*paper, Group(f"the method {cls.__name__}", cls, file, "method.", base)]


def name_of(method: Any) -> str:
    """The name or place of a method that is given as a name or as an instance."""
    if isinstance(method, str):
        place(method)
        return method
    cls = type(method)
    here = Path(settings.__file__).parents[1]  # the folder that holds `unmask`, where the places in METHODS begin
    modules = {where.removesuffix(f":{cls.__name__}"): name for name, where in METHODS.items() if where.endswith(f":{cls.__name__}")}
    file = Path(inspect.getfile(cls))
    ours = [name for where, name in modules.items() if here / where == file]
    return ours[0] if ours else f"{cls.__module__}:{cls.__qualname__}"


def settle(method: Any, data: Any, config: str | Path | None, said: Mapping[str, Any]) -> Recipe:
    """One recipe out of the layers: dataclass < paper < YAML < words. What stays None is chosen later, for data and machine."""
    file = load(config) if config is not None else {}
    method, data = method if method is not None else file.get("method"), data if data is not None else file.get("data")
    for what, found in (("a method", method), ("data", data)):
        if found is None:
            raise Refused(f"pretrain wants {what}")
    if file.get("method") not in (None, method):  # another method above the file: the file's own settings of its method fall away
        file = {key: value for key, value in file.items() if not key.startswith("method.")}
    parts = [*NETWORK, *method_groups(method)]
    options = {name: option for group in parts for name, option in group.options().items()}
    below = {key: value for key, value in file.items() if key not in ("method", "data")}
    values = layered(check(below, options, f"{config}: "), check(said, options))
    trunk, read, train, views, own = (group.make(values) for group in parts)
    given = frozenset(name for name, value in values.items() if value is not None)
    return Recipe(name_of(method), own, data if not isinstance(data, Path) else str(data), trunk, read, train, views, given)
