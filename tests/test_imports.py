"""A file imports only from above itself, so that the library can be read from top to bottom; and little is imported before it is needed."""

import ast
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest

import unmask

ROOT = Path(unmask.__file__).parent
ORDER = [  # the tree of the design, in reading order; inside a package only circles are forbidden
    *("errors", "settings", "options", "seeds", "patches", "mask", "masking", "encoders", "decoders", "heads", "losses", "contrast", "tokenizers", "interchange"),
    *("targets", "model", "text", "contrasting", "self_distillation", "methods", "load_published", "load", "recipe", "data", "optim", "run", "evaluation", "visualize", "training", "transfer", "compare"),
    *("api", "quickstart", "proof", "testing", "commands", "cli", "__main__"),
]
FILES = sorted(path for path in ROOT.rglob("*.py") if path.name != "__init__.py")


def place(path: Path) -> tuple[str, ...]:
    return path.relative_to(ROOT).with_suffix("").parts


def imported(path: Path) -> set[tuple[str, ...]]:
    """The files of ours that a file imports, anywhere in it, as places."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: imports are absolute here"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        for name in names:
            parts = name.split(".")
            while len(parts) > 1 and not (ROOT.parent.joinpath(*parts).with_suffix(".py").is_file() or ROOT.parent.joinpath(*parts, "__init__.py").is_file()):
                parts.pop()  # down to the file that holds the name
            if parts[0] == "unmask" and len(parts) > 1:
                found.add(tuple(parts[1:]))
    return found


def test_every_room_has_its_place():
    rooms = {place(path)[0] for path in FILES}
    assert not rooms - set(ORDER), f"say in ORDER where {rooms - set(ORDER)} stands"


@pytest.mark.parametrize("path", FILES, ids=lambda path: "/".join(place(path)))
def test_imports_come_from_above(path):
    own = place(path)
    below = [other for other in imported(path) if other[0] != own[0] and ORDER.index(other[0]) > ORDER.index(own[0])]
    assert not below, f"{'/'.join(own)} imports what stands below it: {below}"


def test_packages_have_no_circles():
    graph = {place(path): {other for other in imported(path) if other != place(path)} for path in FILES}
    order = list(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError
    assert len(order) >= len(FILES)


def test_a_method_imports_no_other_method():
    for path in sorted((ROOT / "methods").glob("*.py")):
        if path.name not in ("__init__.py", "statement.py"):
            assert not [other for other in imported(path) if other[0] == "methods"], path.name


LIGHT = ("", ".errors", ".settings", ".options", ".recipe", ".methods", ".methods.statement", ".encoders.names", ".api", ".commands", ".cli")


def test_asking_imports_no_torch():
    """`unmask --help` and a wrong word answer before the slow libraries are imported."""
    lines = [f"import unmask{name}" for name in LIGHT if ROOT.joinpath(*name.split(".")).with_suffix(".py").is_file() or ROOT.joinpath(*name.split(".")).is_dir()]
    heavy = ("torch", "numpy", "timm", "torchvision", "lightning", "PIL", "matplotlib")
    code = "import sys\n" + "\n".join(f"{line}\nassert not {{*{heavy}}} & sys.modules.keys(), ({line!r}, {{*{heavy}}} & sys.modules.keys())" for line in lines)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-500:]
