"""The dataclass that the command line makes from a method's text is the one that Python imports."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import pytest

from unmask.errors import Refused
from unmask.methods import METHODS, find
from unmask.methods.statement import known, source_file, statement


@pytest.mark.parametrize("name", METHODS)
def test_statement_equals_the_imported_class(name):
    ours, theirs = known(name), find(name)
    assert ours.__doc__ == theirs.__doc__
    for said, imported in zip(dataclasses.fields(ours), dataclasses.fields(theirs), strict=True):
        assert (said.name, said.type, said.default) == (imported.name, imported.type, imported.default)
    for word in ("sentence", "source", "paper", "views"):
        assert vars(ours)[word] == vars(theirs)[word]
    assert dataclasses.asdict(ours()) == dataclasses.asdict(theirs())


@pytest.mark.parametrize("name", METHODS)
def test_statement_needs_no_torch(name):
    code = f"import sys; from unmask.methods.statement import known; known({name!r}); sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_somebody_elses_method(tmp_path, monkeypatch):
    folder = tmp_path / "theirs"
    folder.mkdir()
    text = "from dataclasses import dataclass\nimport nothing_like_it\n\n\n@dataclass(frozen=True)\nclass Mine:\n    lambda_: float = 2.0  # how much\n"
    for name in ("__init__", "mine"):
        (folder / f"{name}.py").write_text(text if name == "mine" else "raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    assert known(f"{folder}/mine.py:Mine")().lambda_ == 2.0
    assert known("theirs.mine:Mine")().lambda_ == 2.0
    assert source_file("theirs.mine") == folder / "mine.py"


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("@dataclass\nclass Mine:\n    width: int = SIZE\n", "SIZE"),
        ("class Mine: pass\n", "no dataclass"),
        ("@dataclass\nclass Mina: pass\n", "no class Mine, did you mean Mina?"),
        ("class Mine(\n", "line 1"),
    ],
)
def test_a_statement_that_cannot_be_read(tmp_path, text, answer):
    (tmp_path / "my.py").write_text(text)
    with pytest.raises(Refused, match=answer):
        statement(str(tmp_path / "my.py"), "Mine")


def test_a_method_that_is_not_there(tmp_path):
    for word, answer in (("maee", "mae"), ("nothing.at_all:X", "nothing.at_all"), (f"{tmp_path}/no.py:X", "no.py")):
        with pytest.raises(Refused, match=answer):
            known(word)
