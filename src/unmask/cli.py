"""The commands. Words are read here, checked before torch is imported, and handed to the verb of the same name in `api`.

Exit status: 0 done, 1 failed, 2 wrong usage or an input refused before the first step, 75 interrupted and resumable, 130 Ctrl-C elsewhere.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from unmask import __version__, api
from unmask.commands import COMMANDS, RUN, SEVERAL, Said, describe
from unmask.errors import Refused, UnmaskError
from unmask.methods import METHODS, TOKENIZERS, TRANSFERS, place
from unmask.options import Group, load, parse, suggestion
from unmask.recipe import groups_of, views_group

EXAMPLE = """
examples:
  unmask pretrain mae photos/ --out runs/first
  unmask evaluate knn runs/first labelled/train --val labelled/val
  unmask reconstruct runs/first photos/ --out grid.png

`unmask COMMAND --help` says the rest; `unmask quickstart` shows everything once, without data of your own."""
BEGIN = {"pretrain": METHODS, "tokenizer train": TOKENIZERS}  # commands that begin a run of a METHOD, and what there is

VIEWS = "show views"  # takes the settings of a method's views


def main(words: list[str] | None = None) -> int:
    """Run one command; its exit status."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read when torch is imported: threads that wait in a loop make a shared CPU many times slower
    try:
        code = answer(list(sys.argv[1:] if words is None else words))
        sys.stdout.flush()
        return code
    except UnmaskError as error:
        print(f"unmask: {error}", file=sys.stderr)
        return error.status
    except KeyboardInterrupt:
        print("unmask: stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `unmask models | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:  # no space, no permission
        if error.strerror is None:
            raise
        print(f"unmask: {error.strerror}" + (f": {error.filename}" if error.filename else ""), file=sys.stderr)
        return 1


def answer(words: list[str]) -> int:
    """Help and version at once; else the command's verb, with its result printed."""
    if "--version" in words[:1]:
        print(f"unmask {__version__}")
        return 0
    if not words or words[0] in ("--help", "-h", "help"):
        print(overview())
        return 0
    name, rest = command_of(words)
    if rest and {"--help", "-h"} & set(rest):
        print(command_help(name, rest))
        return 0
    positional, values = read(name, rest)
    shown = {key: values.pop(key, False) for key in ("json", "quiet")}
    command = COMMANDS[name]
    with spoken(**shown):
        result = command.verb(*([command.first] if command.first else []), *positional, **values)
    if isinstance(result, dict) and (shown["json"] or command.verb in (api.evaluate, api.compare)):
        print(json.dumps(result, ensure_ascii=False))
    elif shown["json"]:
        print(json.dumps({"out": str(result)} if result is not None else {}, ensure_ascii=False))
    return 0


@contextlib.contextmanager
def spoken(json: bool, quiet: bool) -> Iterator[None]:
    """Where everything but the result goes while the verb works: stdout, stderr or nowhere.

    The file descriptor is turned, not only `sys.stdout`: processes that the verb starts, and libraries in C, write there too.
    """
    if not (json or quiet) or sys.__stdout__ is None:  # None: stdout was closed before we began
        yield
        return
    with open(os.devnull, "w") if quiet else contextlib.nullcontext(sys.stderr) as place, contextlib.redirect_stdout(place):
        sys.__stdout__.flush()
        kept = os.dup(1)
        os.dup2(place.fileno() if quiet else 2, 1)
        try:
            yield
        finally:
            os.dup2(kept, 1)
            os.close(kept)


def command_of(words: list[str]) -> tuple[str, list[str]]:
    """The command's name, of one or two words, and the words after it; `evaluate --help` keeps the name of the family."""
    first = words[0]
    if first in COMMANDS:
        return first, words[1:]
    if first not in SEVERAL:
        if first.startswith("-"):
            raise Refused(f"'{first}' comes before the command: unmask COMMAND … (`unmask --help` lists the commands)")
        raise Refused(f"unknown command '{first}'{suggestion(first, [*COMMANDS, *SEVERAL])} (`unmask --help` lists them)")
    kinds = [name.split()[1] for name in COMMANDS if name.split()[0] == first]
    second = words[1] if len(words) > 1 else ""
    if second in kinds:
        return f"{first} {second}", words[2:]
    if second in ("--help", "-h"):
        return first, words[1:]
    raise Refused(f"unmask {first} wants one of {', '.join(kinds)}" + (f", got '{second}'{suggestion(second, kinds)}" if second else ""))


def read(name: str, words: list[str]) -> tuple[list[Any], dict[str, Any]]:
    """The words of a command -> what its verb takes by place, and its settings by name."""
    options = {option.name: option for group in groups(name, words) for option in group.options().values()}
    left, values = parse(words, options)
    if name in BEGIN:
        return arrange(name, left, values), values
    usage, taken = f"unmask {name} {COMMANDS[name].places}", list[Any]()
    places = COMMANDS[name].places.split()
    for number, one in enumerate(places):
        if one.startswith("[") and len(left) <= sum(not later.startswith("[") for later in places[number:]):
            taken.append(None)  # the words are for what must be said
            continue
        if not left and not one.startswith("["):
            raise Refused(f"{one.rstrip('…')} is missing: {usage}")
        if one.endswith("…"):
            taken.append(left)
            left = []
        else:
            taken.append(left.pop(0) if left else None)
    if left:
        raise Refused(f"'{left[0]}' is a word too many: {usage}")
    return taken, values


def arrange(name: str, positional: list[str], values: dict[str, Any]) -> list[Any]:
    """METHOD and DATA, each from the words or left to --config."""
    example = f"unmask {name} {next(iter(BEGIN[name]))} photos/ --out runs/first"
    config = load(values["config"]) if values.get("config") else {}
    if len(positional) > 2:
        raise Refused(f"'{positional[2]}' is a word too many: unmask {name} METHOD DATA --out RUN")
    if len(positional) == 1 and "method" in config and not is_method(positional[0]):
        if not Path(positional[0]).exists() and not re.search(r"[/:*.]", positional[0]):
            place(positional[0])  # neither a method nor data: refused with the nearest method
        positional = [config["method"], *positional]
    method, data = [*positional, None, None][:2]
    if method is not None:
        place(method)
    for what, found in (("METHOD", method or config.get("method")), ("DATA", data or config.get("data"))):
        if found is None:
            raise Refused(f"{what} is missing: {example}")
    if values.get("out") is None:
        raise Refused(f"--out is missing: unmask {name} {method or config['method']} {data or config['data']} --out runs/first")
    return [method, data]


def is_method(word: str) -> bool:
    """Whether a word names a method: one of ours, `file.py:Name` or `package.module:Name`; `hf:NAME` is data."""
    return word in METHODS | TOKENIZERS or (re.fullmatch(r".+(\.py|\w):[A-Za-z_]\w*", word) is not None and not word.startswith("hf:"))


def bare(name: str, words: list[str]) -> Iterator[str]:
    """The words that are no option and no option's value, as far as that can be told before the method's own options are known."""
    flags = {option.name for cls in COMMANDS[name].settings for option in Group("", cls).options().values() if option.flag}
    valued = False  # whether the word before is an option that waits for its value; further numbers of it are no methods anyway
    for word in words:
        if word.startswith("--"):
            valued = "=" not in word and word[2:] not in flags and not word.startswith("--no-")
        elif valued:
            valued = False
        else:
            yield word


def method_of(name: str, words: list[str]) -> str | None:
    """The method whose settings a command takes: the word METHOD, what the run or the file says, or the command's own."""
    if COMMANDS[name].first in TRANSFERS:
        return COMMANDS[name].first
    if name == "resume":
        run = next((Path(w) / "config.yaml" for w in words if (Path(w) / "config.yaml").is_file()), None)
        return load(run).get("method") if run else None
    if name == "distill":
        said = [word.partition("=")[2] or "".join(words[i + 1 : i + 2]) for i, word in enumerate(words) if word.partition("=")[0] == "--by"]
        return said[0] if said and is_method(said[0]) else "distill"
    if name not in (*BEGIN, VIEWS):
        return None
    method = next((word for word in bare(name, words) if is_method(word)), None)
    if name == VIEWS:
        return method
    for i, word in enumerate(words):
        if method is None and word.partition("=")[0] == "--config":
            file = word.partition("=")[2] or "".join(words[i + 1 : i + 2])
            method = load(file).get("method") if file else None
    if method is None and words and not words[0].startswith("-"):
        place(words[0])  # refused with the nearest name, before its options seem unknown
    return method


def groups(name: str, words: list[str]) -> list[Group]:
    """The settings of a command, and of its method where one is said."""
    method = method_of(name, words)
    own = [Group(cls.__name__.lower(), cls) for cls in COMMANDS[name].settings]
    if name == VIEWS:
        own.append(views_group(method))
    elif method is not None:
        own = [group for group in own if group.cls not in RUN] + groups_of(method)
    return [*own, Group("what is printed", Said)]


def overview() -> str:
    """The help of unmask itself."""
    left = {f"{name} {command.places}".strip(): command.says for name, command in COMMANDS.items()}
    lines = [f"  {words:<{max(map(len, left)) + 2}}{says}" for words, says in left.items()]
    return "\n".join(["usage: unmask COMMAND …", "", "Masked image modelling: any folder of pictures in, a proven encoder out.", "", *lines, EXAMPLE])


def command_help(name: str, words: list[str]) -> str:
    """The help of a command, with its method's own settings where METHOD is said; or of a family of commands."""
    if name in SEVERAL:
        kinds = {other: command for other, command in COMMANDS.items() if other.split()[0] == name}
        lines = [f"  {f'unmask {other} {command.places}':<40}{command.says}" for other, command in kinds.items()]
        return "\n".join([f"usage: unmask {name} KIND …", "", *lines, "", f"`unmask {next(iter(kinds))} --help` lists its settings."])
    command, method = COMMANDS[name], None
    said = command.says
    if name in BEGIN:
        method = method_of(name, [word for word in words if word not in ("--help", "-h")])
        said += "\n\n" + (describe(method) if method else f"METHOD is one of: {', '.join(BEGIN[name])}; `unmask {name} METHOD --help` adds its own settings.")
    usage = f"unmask {name} {method + ' [DATA]' if method else command.places} [--option value …]"
    return help_text(usage, said, groups(name, [word for word in words if word not in ("--help", "-h")]))


def help_text(usage: str, says: str, groups: Iterable[Group]) -> str:
    """The help of one command: every option with its comment and its default."""
    parser = argparse.ArgumentParser(prog="unmask", usage=usage, description=says, add_help=False, formatter_class=_wide)
    for group in groups:
        place, comments = parser.add_argument_group(group.title), group.comments()
        for option in group.options().values():
            written = f"--[no-]{option.name}" if option.flag else f"--{option.name}"
            words: dict[str, Any] = {"action": "store_true"} if option.flag else {"metavar": option.metavar}
            place.add_argument(written, dest=option.name, help=f"{comments[option.name]}{_shown(option.default)}".replace("%", "%%"), **words)
    return parser.format_help()


def _shown(default: Any) -> str:
    """A default as the help says it."""
    if default is None or isinstance(default, bool):
        return {None: "", True: " [on]", False: " [off]"}[default]
    return f" [{' '.join(f'{p:g}' if isinstance(p, float) else str(p) for p in (default if isinstance(default, tuple) else (default,)))}]"


def _wide(prog: str) -> argparse.HelpFormatter:
    return argparse.RawDescriptionHelpFormatter(prog, max_help_position=34)  # room for our longer names


if __name__ == "__main__":
    sys.exit(main())
