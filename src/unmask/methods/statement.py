"""A method's dataclass without its imports: so that `unmask pretrain mae --help` and a wrong value need no torch.

The dataclass statement of a method's file uses only names of `settings.py`; it alone is run here, found with `ast`.
A law compares it with the class that Python imports.
"""

from __future__ import annotations
import __future__

import ast
import dataclasses
import importlib.util
from pathlib import Path

from unmask import settings
from unmask.errors import Refused
from unmask.methods import place
from unmask.options import SCOPE, suggestion


def source_file(source: str) -> Path:
    """The file behind a method's place: a path that ends in .py, or a dotted module, of which nothing is imported."""
    ours = Path(settings.__file__).parents[1] / source  # places in METHODS begin at the folder that holds `unmask`
    if source.endswith(".py"):
        path = ours if ours.is_file() else Path(source)
    else:
        first, *rest = source.split(".")
        spec = importlib.util.find_spec(first)
        folders = list(spec.submodule_search_locations or []) if spec else []
        tried = [Path(f).joinpath(*rest, end) for f in folders for end in ("__init__.py",)]
        tried += [Path(f).joinpath(*rest).with_suffix(".py") for f in folders if rest]
        tried += [Path(spec.origin)] if spec and spec.origin and not rest else []
        path = next((p for p in tried if p.is_file()), Path(source))
    if not path.is_file():
        raise Refused(f"no file {source} for the method")
    return path


def statement(source: str, name: str) -> type:
    """The dataclass `name` of a method's file, made by running that one statement."""
    path = source_file(source)
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except SyntaxError as error:
        raise Refused(f"{path}, line {error.lineno}: {error.msg}") from None
    classes = {n.name: n for n in tree.body if isinstance(n, ast.ClassDef)}
    if name not in classes:
        raise Refused(f"{path} has no class {name}{suggestion(name, classes)}")
    scope = {**SCOPE, "__name__": settings.__name__}  # dataclass looks its annotations up in a module of that name
    try:
        exec(compile(ast.Module([classes[name]], []), str(path), "exec", __future__.annotations.compiler_flag, True), scope)
    except NameError as error:
        raise Refused(f"{path}: the statement of {name} may use only names of unmask.settings: {error}") from None
    if not dataclasses.is_dataclass(scope[name]):
        raise Refused(f"{path}: {name} is no dataclass")
    return scope[name]


def known(word: str) -> type:
    """The dataclass of a method by its name or place."""
    return statement(*place(word))
