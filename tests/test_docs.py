"""What the pages say is true: commands are read by the real command line, code runs, links lead somewhere, the tree is the tree."""

from __future__ import annotations

import re
import shlex
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from unmask import cli
from unmask.errors import Refused

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))
SOURCE = ROOT / "src" / "unmask"


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S)


def commands(text: str) -> list[str]:
    """The `unmask …` lines of a text, with `$ ` or a comment mark before them, without what a shell would take off."""
    found = re.findall(r"^(?:\$ |#? *)(unmask [^\n]+)$", text.replace("\\\n", " "), re.M)
    return [line.partition(" #")[0].strip() for line in found]


def in_pages() -> list[tuple[str, str]]:
    """(page, command) of every block of commands, and of every `unmask …` in a line of text that gives more than a name."""
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        lines = [line for language in ("bash", "console") for block in blocks(page, language) for line in commands(block)]
        lines += [said for said in re.findall(r"`(unmask [a-z][^`]*)`", text.replace("\n", " ")) if not re.search(r"[A-Z]{2,}|…", said)]
        found += [(page.name, line) for line in dict.fromkeys(lines)]
    for recipe in RECIPES:
        found += [(recipe.name, line) for line in commands(re.sub("^# ?", "", recipe.read_text(encoding="utf-8"), flags=re.M))]
    return found


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    """A folder in which the files that commands name are there: recipes, and the method of add-a-method.md."""
    folder = tmp_path_factory.mktemp("desk")
    (folder / "recipes").symlink_to(ROOT / "recipes")
    (folder / "my_method.py").write_text(blocks(ROOT / "docs" / "add-a-method.md", "python")[0])
    return folder


@pytest.mark.parametrize(("page", "line"), in_pages())
def test_commands_are_understood(page, line, desk, monkeypatch):
    """Every command is one, and each of its options is known and has a value that fits."""
    monkeypatch.chdir(desk)
    words = [word for word in shlex.split(line)[1:] if word != "…"]
    if words[0].startswith("-") or words[-1] == "--help":
        assert cli.answer(words) == 0
        return
    if words in ([name] for name in cli.SEVERAL):
        return
    try:
        cli.read(*cli.command_of(words))
    except Refused as error:
        if "is missing" not in str(error) or len(words) > 4:  # in a sentence a command may go without its data
            raise


def test_the_page_of_methods_names_each():
    """With the row of the table that the method itself carries."""
    from unmask.methods import METHODS
    from unmask.methods.statement import known

    text = (ROOT / "docs" / "choosing-a-method.md").read_text(encoding="utf-8")
    for name in METHODS:
        row = known(name).row
        assert f"| `{name}` | {row[1]} | {row[2]} | {row[3]} | {row[4]} |" in text, f"the row of {name} is: | `{name}` | {' | '.join(row[1:])} |"


def test_there_are_commands_to_check():
    assert len(in_pages()) > 25
    with pytest.raises(Refused, match="epochs"):
        cli.read(*cli.command_of(["pretrain", "mae", "photos/", "--out", "runs/x", "--epoch", "3"]))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_files_exist(page):
    text = page.read_text(encoding="utf-8")
    missing = [link for link in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text) if not link.startswith("http") and not (page.parent / link).exists()]
    assert not missing
    named = re.findall(r"`((?:src|tests|docs|recipes|benchmarks|\.ci)/[\w./-]*[\w/])`", text)
    written = ("benchmarks/results/",)  # by the scripts beside it
    assert not [path for path in named if "NAME" not in path and path not in written and not (ROOT / path).exists()]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages_name_no_machine(page):
    text = page.read_text(encoding="utf-8")
    assert not re.search(r"/work/|/home/|/root/|/tmp/|\.\./shared", text), "a path of somebody's machine"


def tree(text: str) -> dict[str, str]:
    """path below src/unmask -> its line, of the block that begins with src/unmask/."""
    block = next(block for block in re.findall(r"```text\n(.*?)```", text, re.S) if block.startswith("src/unmask/"))
    found, package = {}, ""
    for line in block.splitlines()[1:]:
        indent, name, said = re.fullmatch(r"( *)(\S+)\s+(.+)", line).groups()
        package = package if len(indent) > 2 else ""
        if name.endswith("/"):
            package = name
        found[name if name == package else package + name] = said
    return found


def test_the_tree_is_the_tree():
    """The tree of the whole library names every file and package there is, and none that is not."""
    said = tree((ROOT / "docs" / "the-whole-library.md").read_text(encoding="utf-8"))
    files = {path.relative_to(SOURCE).as_posix() for path in SOURCE.rglob("*.py")}
    files = {path for path in files if not path.endswith("/__init__.py")}
    packages = {path.split("/")[0] + "/" for path in files if "/" in path}
    assert sorted(files | packages) == sorted(said)


def test_the_tree_is_the_order_of_imports():
    """A file imports only from files above itself in that tree."""
    import ast

    said = tree((ROOT / "docs" / "the-whole-library.md").read_text(encoding="utf-8"))
    order = {path: place for place, path in enumerate(said)}
    wrong = []
    for path in order:
        if path.endswith("/") or path == "__init__.py":
            continue
        for node in ast.walk(ast.parse((SOURCE / path).read_text(encoding="utf-8"))):
            names = [node.module] if isinstance(node, ast.ImportFrom) and node.module else [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module:
                names += [f"{node.module}.{alias.name}" for alias in node.names]
            for name in names:
                below = name.removeprefix("unmask.").replace(".", "/")
                file = f"{below}.py"
                if name.startswith("unmask.") and file in order and order[file] >= order[path]:
                    wrong.append(f"{path} imports {file}")
    assert not wrong


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.name)
def test_recipes_parse(recipe):
    """A recipe is a file of settings that its method takes; its comment gives the command and what to expect."""
    from unmask.encoders import names
    from unmask.methods.statement import known
    from unmask.recipe import settle

    head = recipe.read_text(encoding="utf-8")
    settled = settle(None, "photos/", recipe, {})
    command = "evaluate finetune" if settled.name == "finetune" else "pretrain"
    assert re.search(rf"^#   unmask {command} --config recipes/" + recipe.name, head, re.M) and "Hours" in head and "Expected" in head
    if settled.name == "finetune":
        assert settled.train.batch_size == 1024 and settled.train.min_lr == 1e-6 and settled.train.betas == (0.9, 0.999) and settled.method.mixup == 0.8
        assert (settled.train.base_lr, settled.method.layer_decay) == ((5e-4, 0.65) if "base" in recipe.name else (1e-3, 0.75))
        return
    method = known(settled.name)
    names.check(settled.trunk.model, kinds=vars(method).get("kinds", names.TRAINABLE))
    assert settled.train == replace(method.paper, epochs=settled.train.epochs), "its numbers are those that the method carries as its paper's"
    assert settled.train.epochs == method.paper.epochs or f"{settled.train.epochs:,g} epochs" in head or recipe.name == "modern_mae.yaml"
    assert settled.views == method.views or settled.name == "mae"
    assert ("--method.tokenizer" in head) is ("tokenizer" in vars(method).get("needs", ())), "what it needs is in its command"
    assert re.search(r"arXiv:\d{4}\.\d{5}", head) or recipe.name == "modern_mae.yaml", "a figure has a source"


@pytest.mark.parametrize("model", re.findall(r"\b(?:vit|eva02)_\w+", (ROOT / "recipes" / "modern_mae.yaml").read_text(encoding="utf-8")))
def test_modern_trunks_build(model):
    """The trunks that the recipe names are what it says; those of a size for tests train."""
    from unmask.encoders.build import create_trunk
    from unmask.methods.mae import MAE

    with torch.device("meta"):
        trunk = create_trunk(model, (224, 224), 3)
    registers = trunk.num_prefix_tokens - (trunk.cls_token is not None)
    rotary, gated = getattr(trunk, "rope", None) is not None, "GLU" in type(trunk.blocks[0].mlp).__name__.upper()
    wanted = {"_plus_": (4, True, True), "reg1": (1, True, False), "eva02": (0, True, True), "base_patch16_dinov3": (4, True, False), "vit_small_patch16_224": (0, False, False)}
    assert (registers, rotary, gated) == next(parts for word, parts in wanted.items() if word in model)
    if "small" in model:
        learner = MAE().build(model, (64, 64), depth=2)
        learner(torch.randn(2, 3, 64, 64))["loss"].backward()
        assert all(weight.grad is not None for weight in learner.parameters() if weight.requires_grad)


@pytest.mark.parametrize("page", ["add-a-method.md", "add-a-mask.md", "add-a-target.md"])
def test_the_parts_that_pages_write_keep_the_laws(page, tmp_path, monkeypatch):
    """The code of a page runs from top to bottom, and the tests that it shows pass."""
    monkeypatch.syspath_prepend(tmp_path)
    code = blocks(ROOT / "docs" / page, "python")
    if page == "add-a-method.md":
        (tmp_path / "my_method.py").write_text(code[0])
        code = code[1:]
    scope: dict = {"__name__": "a_page"}
    for block in code:
        exec(compile(block, page, "exec"), scope)
    tests = [value for name, value in scope.items() if name.startswith("test_")]
    assert tests
    for test in tests:
        test()


def test_python_page_runs():
    """The loop of one's own, and what is behind the mask; the verbs are names of the package."""
    import unmask

    code = blocks(ROOT / "docs" / "python-api.md", "python")
    scope: dict = {}
    for block in code:
        compile(block, "python-api.md", "exec")
    for block in code[-2:]:
        exec(block, scope)
    assert scope["shown"].shape == (8, 64) and scope["shown"].float().mean() == 0.75
    named = set(re.findall(r"unmask\.([a-z_]+|Refused|Failed|Interrupted)\(", "\n".join(code))) | set(re.findall(r"`unmask\.(\w+)[(`]", (ROOT / "docs" / "python-api.md").read_text()))
    assert not [name for name in named - {"testing"} if not hasattr(unmask, name)]


def test_make_says_what_it_does():
    answer = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert answer.returncode == 0 and "make demo" in answer.stdout and "make test" in answer.stdout


def test_make_installs_once(tmp_path):
    """With the stamp newer than pyproject.toml nothing is installed again."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").symlink_to("/bin/true")
    for stamp in (".has-test", ".has-demo"):
        (tmp_path / stamp).touch()
    answer = subprocess.run(["make", "-n", "test", "demo", f"VENV={tmp_path}"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "installing" not in answer.stdout and "pytest" in answer.stdout and "unmask quickstart" in answer.stdout
