"""The commands. Words are read here, checked before torch is imported, and handed to the verb of the same name in `api`.

Exit status: 0 done, 1 failed, 2 wrong usage or an input refused before the first step, 75 interrupted and resumable, 130 Ctrl-C elsewhere.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unmask import __version__, api, settings, verbs
from unmask.encoders import names
from unmask.errors import Refused, UnmaskError
from unmask.methods import METHODS, place
from unmask.methods.statement import known
from unmask.options import Group, help_text, load, parse, suggestion
from unmask.recipe import method_groups


@dataclass(frozen=True)
class Said:
    """What every command takes."""

    json: bool = False  # stdout holds nothing but one JSON object; everything else goes to stderr
    quiet: bool = False  # say nothing but the result and what goes wrong


@dataclass(frozen=True)
class Command:
    """A command: the words it wants, its settings, and the verb that is called with both."""

    places: str  # its words in order; one that ends in … takes all that are left, one in brackets may be absent
    says: str
    verb: Callable[..., Any]
    settings: tuple[type, ...] = ()
    first: str = ""  # the verb's first argument, where several commands share it


@dataclass(frozen=True)
class Run:
    """Where a run is written and what it is read from."""

    out: str | None = None  # the folder to make; a non-empty one is refused
    config: str | None = None  # a YAML file of settings: METHOD, DATA and any option; what is typed goes above it


@dataclass(frozen=True)
class Again:
    """How a run goes on."""

    force: bool = False  # take settings that differ from the run's own: the result is then no longer the uninterrupted run's


def quickstart(**settings: Any) -> Any:
    """The embedded default."""
    from unmask import quickstart as embedded

    return embedded.run(**settings)


def describe(name: str) -> str:
    """A method in a few lines."""
    said = vars(known(name))
    row = dict(zip(("tokens", "masking", "masked patches are", "decoder", "target"), said.get("row", ())))
    lines = [f"{name}: {said['sentence']}", f"{said['source']}; standing: {said.get('standing', 'experimental')}"]
    lines += ["; ".join(f"{key} {value}" for key, value in row.items())] if row else []
    return "\n    ".join(lines)


def show_methods() -> dict[str, str]:
    """Every method's sentence, paper and standing."""
    print("\n".join(describe(name) for name in METHODS))
    print("\nunmask pretrain METHOD --help lists a method's settings; your own method is my_method.py:Name or package.module:Name")
    return {name: describe(name) for name in METHODS}


def show_models(word: str | None = None) -> dict[str, list[str]]:
    """The networks that can be pre-trained, without asking timm or torch."""
    found = [name for name in names.trainable() if (word or "") in name]
    if not found:
        raise Refused(f"no network's name holds '{word}'{suggestion(word or '', names.trainable())}")
    print("\n".join(found))
    print(SIZES if word is None else f"{len(found)} networks", file=sys.stderr)
    return {"models": found}


SIZES = """
These are timm's plain vision transformers (VisionTransformer, Eva). The usual ones by size:
  vit_tiny_patch16_224    5.5 M weights    vit_base_patch16_224   85.8 M    vit_huge_patch14_224  630.8 M
  vit_small_patch16_224  21.7 M weights    vit_large_patch16_224 303.3 M
--img_size, --patch_size and --in_chans change the input of any of them: the sizes in the names are only defaults."""
MEASURE = (verbs.Measure, verbs.Look)
RUN = (settings.Trunk, settings.Input, settings.Train)
COMMANDS = {
    "quickstart": Command("", "train on real photographs that need no download, and show everything once (a few minutes)", quickstart, (verbs.Quickstart,)),
    "pretrain": Command("[METHOD] [DATA]", "pre-train an encoder: any folder of pictures in, a proven encoder out", api.pretrain, (Run, *RUN)),
    "resume": Command("RUN", "go on exactly where a run stopped", api.resume, (Again, *RUN)),
    "evaluate knn": Command("ENCODER DATA", "are pictures of a class near each other? (no training)", api.evaluate, (*MEASURE, verbs.Neighbours), "knn"),
    "evaluate linear": Command("ENCODER DATA", "can a linear map tell the classes from frozen features?", api.evaluate, (*MEASURE, verbs.Linear), "linear"),
    "reconstruct": Command("RUN IMAGES…", "draw what the network imagines behind the mask", api.reconstruct, (verbs.Reconstruct,)),
    "embed": Command("ENCODER IMAGES…", "write the features of pictures to .npz or .parquet", api.embed, (verbs.Embed, verbs.Look)),
    "export": Command("RUN", "write the encoder for another library", api.export, (verbs.Export,)),
    "inspect": Command("DATA", "count and check pictures: sizes, channels, statistics, bad files, duplicates", api.inspect, (verbs.Inspect,)),
    "report": Command("RUN…", "write report.html: curves, pictures, evaluations; several runs side by side", api.report, (verbs.Report,)),
    "methods": Command("", "the methods, their papers, and how far each is proven", show_methods),
    "models": Command("[WORD]", "the networks that can be pre-trained, or those whose name holds WORD", show_models),
    "show mask": Command("STRATEGY", "draw a masking strategy and its law", api.show_mask, (verbs.ShowMask,)),
    "show attention": Command("ENCODER IMAGES…", "draw where the encoder looks", api.show_encoder, (verbs.ShowEncoder, verbs.Look), "attention"),
    "show features": Command("ENCODER IMAGES…", "draw patch features as colours (principal components)", api.show_encoder, (verbs.ShowEncoder, verbs.Look), "features"),
    "show views": Command("DATA", "draw training crops of pictures", api.show_views, (verbs.ShowViews,)),
}
SEVERAL = {name.split()[0] for name in COMMANDS if " " in name}
EXAMPLE = """
examples:
  unmask pretrain mae photos/ --out runs/first
  unmask evaluate knn runs/first labelled/train --val labelled/val
  unmask reconstruct runs/first photos/ --out grid.png

`unmask COMMAND --help` says the rest; `unmask quickstart` shows everything once, without data of your own."""


def main(words: list[str] | None = None) -> int:
    """Run one command; its exit status."""
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
    if isinstance(result, dict) and (shown["json"] or command.verb is api.evaluate):
        print(json.dumps(result, ensure_ascii=False))
    elif shown["json"]:
        print(json.dumps({"out": str(result)} if result is not None else {}, ensure_ascii=False))
    return 0


@contextlib.contextmanager
def spoken(json: bool, quiet: bool) -> Iterator[None]:
    """Where everything but the result goes while the verb works: stdout, stderr or nowhere."""
    place = io.StringIO() if quiet else sys.stderr if json else sys.stdout
    with contextlib.redirect_stdout(place):
        yield


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
    if name == "pretrain":
        return arrange(left, values), values
    usage, taken = f"unmask {name} {COMMANDS[name].places}", list[Any]()
    for one in COMMANDS[name].places.split():
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


def arrange(positional: list[str], values: dict[str, Any]) -> list[Any]:
    """METHOD and DATA, each from the words or left to --config."""
    config = load(values["config"]) if values.get("config") else {}
    if len(positional) > 2:
        raise Refused(f"'{positional[2]}' is a word too many: unmask pretrain METHOD DATA --out RUN")
    if len(positional) == 1 and "method" in config and not is_method(positional[0]):
        if not Path(positional[0]).exists() and not re.search(r"[/:*.]", positional[0]):
            place(positional[0])  # neither a method nor data: refused with the nearest method
        positional = [config["method"], *positional]
    method, data = [*positional, None, None][:2]
    if method is not None:
        place(method)
    for what, found in (("METHOD", method or config.get("method")), ("DATA", data or config.get("data"))):
        if found is None:
            raise Refused(f"{what} is missing: unmask pretrain mae photos/ --out runs/first")
    if values.get("out") is None:
        raise Refused(f"--out is missing: unmask pretrain {method or config['method']} {data or config['data']} --out runs/first")
    return [method, data]


def is_method(word: str) -> bool:
    """Whether a word names a method: one of ours, `file.py:Name` or `package.module:Name`."""
    return word in METHODS or re.fullmatch(r".+(\.py|\w):[A-Za-z_]\w*", word) is not None


def method_of(name: str, words: list[str]) -> str | None:
    """The method whose settings a command takes: the word METHOD, or what the run or the file says."""
    if name == "resume":
        run = next((Path(w) / "config.yaml" for w in words if (Path(w) / "config.yaml").is_file()), None)
        return load(run).get("method") if run else None
    if name != "pretrain":
        return None
    method = next((word for word in words if is_method(word)), None)
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
    own = [Group(cls.__name__.lower(), cls, Path(sys.modules[cls.__module__].__file__ or "")) for cls in COMMANDS[name].settings]
    if method is not None:
        own = [group for group in own if group.cls is not settings.Train] + method_groups(method)
    return [*own, Group("said", Said, Path(__file__))]


def overview() -> str:
    """The help of unmask itself."""
    lines = [f"  {f'{name} {command.places}'.strip():<34}{command.says}" for name, command in COMMANDS.items()]
    return "\n".join(["usage: unmask COMMAND …", "", "Masked image modelling: any folder of pictures in, a proven encoder out.", "", *lines, EXAMPLE])


def command_help(name: str, words: list[str]) -> str:
    """The help of a command, with its method's own settings where METHOD is said; or of a family of commands."""
    if name in SEVERAL:
        kinds = {other: command for other, command in COMMANDS.items() if other.split()[0] == name}
        lines = [f"  {f'unmask {other} {command.places}':<40}{command.says}" for other, command in kinds.items()]
        return "\n".join([f"usage: unmask {name} KIND …", "", *lines, "", f"`unmask {next(iter(kinds))} --help` lists its settings."])
    command, method = COMMANDS[name], None
    said = command.says
    if name == "pretrain":
        method = method_of(name, [word for word in words if word not in ("--help", "-h")])
        said += "\n\n" + (describe(method) if method else f"METHOD is one of: {', '.join(METHODS)}; `unmask pretrain METHOD --help` adds its own settings.")
    usage = f"unmask {name} {method + ' [DATA]' if method else command.places} [--option value …]"
    return help_text(usage, said, groups(name, [word for word in words if word not in ("--help", "-h")]))


if __name__ == "__main__":
    sys.exit(main())
