"""Dataclass fields <-> words <-> YAML: a setting is read and refused the same way wherever it was written. No torch here.

Each field of a settings class is one option: its name, its type, its default, and the comment at the end of its line as
help. A method's class joins in without torch: see `methods/statement.py`.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import math
import re
import sys
import types
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn, Union, get_args, get_origin, get_type_hints

from unmask import settings
from unmask.errors import Refused
from unmask.settings import FORMAT, Ratio

LENGTHS = ("epochs", "steps", "time")  # three ways to say one thing: the length of a run
NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")
SCOPE = {**vars(settings), "field": dataclasses.field}  # what a method's dataclass statement may use


def suggestion(word: str, names: Iterable[str], prefix: str = "") -> str:
    """", did you mean NAME?" when one of the names is near, else nothing."""
    import difflib

    near = difflib.get_close_matches(word, list(names), n=1, cutoff=0.6)
    return f", did you mean {prefix}{near[0]}?" if near else ""


@dataclass(frozen=True)
class Option:
    """One setting as a person writes it: `--lr 1e-3` in words, `lr: 1e-3` in a file, `lr=1e-3` in Python."""

    name: str
    kind: Any
    default: Any

    @property
    def flag(self) -> bool:
        """Whether it is said without a value (`--name`, `--no-name`)."""
        return self.kind is bool

    @property
    def places(self) -> int:
        """How many numbers the value may consist of; 0: it takes any number of words, up to the next option."""
        return 0 if tuple[str, ...] in _alternatives(self.kind) else max((len(get_args(kind)) for kind in _alternatives(self.kind) if get_origin(kind) is tuple), default=1)

    @property
    def metavar(self) -> str:
        """What stands for the value in the help."""
        kind = _alternatives(self.kind)[0]
        if get_origin(kind) is Literal:
            return "|".join(map(str, get_args(kind)))
        if self.places != 1:
            return "PATH…" if not self.places else {"img_size": "H W", "window": "CENTRE WIDTH"}.get(self.name, " ".join("ABCDEFGH"[: self.places]))
        return {int: "N", float: "X", Ratio: "RATIO"}.get(kind, "WORD")

    def read(self, value: object, source: str = "") -> Any:
        """The value in its own type; a value that does not fit is refused under the option's name."""
        try:
            return _read(self.kind, value)
        except ValueError as error:
            raise Refused(f"{source}--{self.name}: {error}") from None


def _alternatives(kind: Any) -> tuple:
    """The types of `A | B | None` without None."""
    if get_origin(kind) in (Union, types.UnionType):
        return tuple(k for k in get_args(kind) if k is not types.NoneType)
    return (kind,)


def _read(kind: Any, value: Any) -> Any:
    """`value`, a word or what YAML or Python gave, as `kind`; a ValueError says what was wanted."""
    alternatives = _alternatives(kind)
    if value is None or (isinstance(value, str) and value.lower() in ("none", "null") and alternatives != (kind,)):
        if alternatives == (kind,):
            raise ValueError("wants a value")
        return None
    if Ratio in alternatives:
        return Ratio.of(value)
    for one in alternatives[:-1]:
        try:
            return _read(one, value)
        except ValueError:
            continue
    kind = alternatives[-1]
    if get_origin(kind) in (Literal, tuple):
        return (_choice if get_origin(kind) is Literal else _numbers)(get_args(kind), value)
    if kind in (int, float):
        return _number(kind, value)
    if kind is bool:
        if str(value).lower() not in ("true", "yes", "1", "false", "no", "0"):
            raise ValueError(f"wants true or false, got '{value}'")
        return str(value).lower() in ("true", "yes", "1")
    return str(value) if kind is str else value


def _choice(choices: tuple, value: Any) -> Any:
    if isinstance(value, bool) and value not in choices:
        value = "yes" if value else "no"  # YAML reads a bare yes as True
    for choice in choices:
        if value == choice or str(value) == str(choice):
            return choice
    raise ValueError(f"'{value}' is none of {', '.join(map(str, choices))}{suggestion(str(value), map(str, choices))}")


def _numbers(kinds: tuple, value: Any) -> tuple:
    many = kinds[-1] is Ellipsis
    if many and kinds[0] is str:
        return tuple(map(str, value)) if isinstance(value, list | tuple) else (str(value),)
    written = [p for p in re.split(r"[,x\s]+", value.strip("()[] ")) if p] if isinstance(value, str) else value
    parts = list(written) if isinstance(written, list | tuple) else [written]
    if len(parts) == 1 and not many and set(kinds) == {int}:
        parts *= len(kinds)  # one whole number: a square
    kinds = kinds[:1] * len(parts) if many else kinds
    if len(parts) != len(kinds):
        raise ValueError(f"wants {len(kinds)} numbers, got '{value}'")
    return tuple(_read(kind, part) for kind, part in zip(kinds, parts))


def _number(kind: type, value: Any) -> int | float:
    wanted, text = "a whole number" if kind is int else "a number", str(value).replace("_", "")
    try:
        number = float(text[:-1]) / 100 if kind is float and text.endswith("%") else float(text)
    except ValueError:
        raise ValueError(f"wants {wanted}, got '{value}'") from None
    if isinstance(value, bool) or not math.isfinite(number) or (kind is int and number != int(number)):
        raise ValueError(f"wants {wanted}, got '{value}'")
    return int(value) if kind is int and isinstance(value, int) else kind(number)


@dataclass(frozen=True)
class Group:
    """A settings class whose fields are options together, the file its text stands in, and whose values are the defaults."""

    title: str
    cls: type
    file: Path | None = None  # not given: the class's own
    prefix: str = ""
    base: Any = None  # an instance, such as the paper's Train; not given: the class's own defaults

    def options(self) -> dict[str, Option]:
        """Every field as an option, by the name that is written."""
        kinds = get_type_hints(self.cls, SCOPE)
        found = []
        for field in dataclasses.fields(self.cls):
            own = field.default if field.default is not dataclasses.MISSING else None
            found.append(Option(self.prefix + field.name, kinds[field.name], own if self.base is None else getattr(self.base, field.name)))
        return {option.name: option for option in found}

    def comments(self) -> dict[str, str]:
        """The comment at the end of each field's line, by the name that is written: its help."""
        import io
        import tokenize

        found: dict[str, str] = {}
        for cls in (kind for kind in reversed(self.cls.__mro__) if dataclasses.is_dataclass(kind)):
            text = (self.file or Path(sys.modules[cls.__module__].__file__ or "")).read_text("utf-8")
            lines = {t.start[0]: t.string.lstrip("# ") for t in tokenize.generate_tokens(io.StringIO(text).readline) if t.type == tokenize.COMMENT}
            body = next(n for n in ast.parse(text).body if isinstance(n, ast.ClassDef) and n.name == cls.__name__).body
            named = [(n.target.id, n.end_lineno or 0) for n in body if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)]
            found |= {self.prefix + name: lines.get(line, "") for name, line in named}
        return found

    def make(self, values: Mapping[str, Any]) -> Any:
        """The settings object with `values` above its defaults; what it refuses is refused under the option's name."""
        own = {o.name.removeprefix(self.prefix): values[o.name] for o in self.options().values() if o.name in values}
        try:
            return dataclasses.replace(self.base, **own) if self.base is not None else self.cls(**own)
        except (ValueError, TypeError) as error:
            word, _, rest = str(error).partition(" ")  # "mask_ratio must lie between 0 and 1, got 1.5"
            known = word in {field.name for field in dataclasses.fields(self.cls)}
            raise Refused(f"--{self.prefix}{word} {rest}" if known else f"{self.title}: {error}") from None


class Parser(argparse.ArgumentParser):
    """argparse, with one line for what is wrong, in the words of errors.py."""

    def error(self, message: str) -> NoReturn:
        raise Refused(message.removeprefix("argument ").replace(": expected one argument", " wants a value").replace(": expected at least one argument", " wants a value"))


def _joined(words: list[str], options: Mapping[str, Option]) -> list[str]:
    """The words with `--img_size 224 96` written as one, and unknown options refused with what was meant."""
    joined: list[str] = []
    while words:
        word = words.pop(0)
        joined.append(word)
        if word == "--":
            return joined + words
        if not word.startswith("--"):
            if re.match(r"-[A-Za-z]", word):
                raise Refused(f"unknown option {word}{suggestion(word.lstrip('-'), options, '--')}")
            continue
        name, equals, _ = word[2:].partition("=")
        option = options.get(name) or options.get(name.removeprefix("no-"))
        if option is None or (name not in options and not option.flag):
            raise Refused(f"unknown option --{name}{suggestion(name, options, '--')}")
        numbers: list[str] = []
        while not equals and len(numbers) < option.places > 1 and words and NUMBER.fullmatch(words[0]):
            numbers.append(words.pop(0))
        if numbers:
            joined[-1] = f"{word}={','.join(numbers)}"
    return joined


def parse(words: list[str], options: Mapping[str, Option]) -> tuple[list[str], dict[str, Any]]:
    """Words as typed -> (the words that belong to no option, the values that were given)."""
    parser = Parser(add_help=False, allow_abbrev=False, argument_default=argparse.SUPPRESS)
    parser.add_argument("words", nargs="*", default=[])
    for option in options.values():
        several = {} if option.places else {"nargs": "+", "action": "extend"}
        how: dict[str, Any] = {"action": argparse.BooleanOptionalAction} if option.flag else several
        parser.add_argument(f"--{option.name}", dest=option.name, **how)
    found = vars(parser.parse_intermixed_args(_joined(list(words), options)))
    return found.pop("words"), {name: options[name].read(value) for name, value in found.items()}


def check(values: Mapping[str, Any], options: Mapping[str, Option], source: str = "") -> dict[str, Any]:
    """Values from a file or from Python in their own types; an unknown name is refused with what was meant."""
    for name in values:
        if name not in options:
            raise Refused(f"{source}unknown option {name}{suggestion(name, options)}")
    return {name: options[name].read(value, source) for name, value in values.items()}


def layered(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """The layers one above the other, the last on top; to say a run's length in one way unsays the ways below."""
    result: dict[str, Any] = {}
    for layer in layers:
        said = [name for name in LENGTHS if layer.get(name) is not None]
        if len(said) > 1:
            raise Refused(f"--{said[0]} and --{said[1]} both say how long the run is: give one of them")
        if said:
            result |= dict.fromkeys(LENGTHS)
        if layer.get("base_lr") is not None:
            result["lr"] = None  # a rate per 256 pictures above an absolute one: the absolute one is unsaid
        result |= layer
    return result


def load(path: str | Path) -> dict[str, Any]:
    """A flat YAML file of settings as it is written (`check` reads the values), without its format number."""
    import yaml

    try:
        found = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
    except OSError as error:
        raise Refused(f"--config: cannot read {path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise Refused(f"--config: {path} is no YAML: {' '.join(str(error).split())}") from None
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found):
        raise Refused(f"--config: {path} must hold lines of `name: value`")
    form = found.pop("format", FORMAT)
    if not isinstance(form, int) or form > FORMAT:
        raise Refused(f"--config: {path} has format {form}, this unmask reads up to {FORMAT}: install a newer one")
    return found


def dump(values: Mapping[str, Any]) -> str:
    """The values as flat YAML that `load` and `check` read back exactly (floats as Python writes them)."""
    import yaml

    plain = {"format": FORMAT} | {name: _plain(value) for name, value in values.items()}
    return yaml.safe_dump(plain, sort_keys=False, default_flow_style=None, allow_unicode=True, width=1000)


def _plain(value: Any) -> Any:
    if isinstance(value, Ratio):
        return value.first if value.moves == "never" else str(value)
    return [_plain(v) for v in value] if isinstance(value, list | tuple) else value
