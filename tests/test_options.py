"""Settings in words, in YAML and in Python are read and refused alike."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from unmask.cli import help_text
from unmask.errors import Refused
from unmask.options import Group, check, dump, layered, load, parse
from unmask.settings import Input, Ratio, Train, Trunk, Views


@dataclass(frozen=True)
class Odd:
    """Every kind of field."""

    share: Ratio = Ratio(0.75, 0.75)
    names: str | None = None  # a word
    sizes: tuple[int, ...] = (1, 2)  # any number of numbers
    level: int | float = 1  # a number of two kinds
    way: Literal["a", "b"] = "a"  # a choice
    on: bool = True  # a flag that is on

    def __post_init__(self):
        if self.level == 13:
            raise ValueError("level must not be 13")


ODD = Group("odd", Odd, Path(__file__), prefix="method.")
OPTIONS = (
    Group("t", Trunk).options()
    | Group("i", Input).options()
    | Group("r", Train).options()
    | Group("v", Views, prefix="views.").options()
    | ODD.options()
)


def words(*said: str) -> dict:
    return parse(list(said), OPTIONS)[1]


@pytest.mark.parametrize(
    ("said", "values"),
    [
        ("--img_size 224 96", {"img_size": (224, 96)}),
        ("--img_size 64", {"img_size": (64, 64)}),
        ("--img_size=64,32", {"img_size": (64, 32)}),
        ("--lr 1e-3 --betas .9 .99", {"lr": 1e-3, "betas": (0.9, 0.99)}),
        ("--activation_checkpointing", {"activation_checkpointing": True}),
        ("--no-method.on", {"method.on": False}),
        ("--clip none", {"clip": None}),
        ("--epochs 0.5", {"epochs": 0.5}),
        ("--batch_size 1e3", {"batch_size": 1000}),
        ("--method.share .6-.9", {"method.share": Ratio(0.6, 0.9, "each step")}),
        ("--method.share video", {"method.share": Ratio(0.9, 0.9)}),
        ("--method.sizes 3 --method.names 12", {"method.sizes": (3,), "method.names": "12"}),
        ("--method.level 2 --method.way b", {"method.level": 2, "method.way": "b"}),
        ("--seed 1 --seed 2", {"seed": 2}),
    ],
)
def test_words_become_values(said, values):
    assert words(*said.split()) == values


def test_options_and_words_mix():
    said = "--img_size 64 64 mae --lr 1e-3 photos --seed 3 more"
    assert parse(said.split(), OPTIONS)[0] == ["mae", "photos", "more"]


@pytest.mark.parametrize(
    ("said", "answer"),
    [
        ("--epoch 3", "unknown option --epoch, did you mean --epochs?"),
        ("--batch-size 3", "did you mean --batch_size?"),
        ("--img_size big", "--img_size: wants a whole number, got 'big'"),
        ("--img_size=1,2,3", "--img_size: wants 2 numbers"),
        ("--batch_size 2.5", "--batch_size: wants a whole number"),
        ("--lr nan", "--lr: wants a number"),
        ("--method.share 1.5", "--method.share"),
        ("--method.way c", "--method.way: 'c' is none of a, b"),
        ("--precision bf16-mix", "did you mean bf16-mixed?"),
        ("--epochs", "--epochs wants a value"),
        ("-e 3", "unknown option -e"),
        ("--no-lr 3", "unknown option --no-lr"),
        ("--no-method.on=3", "--no-method.on"),
        ("--seed none", "--seed"),
    ],
)
def test_wrong_words_are_refused_by_name(said, answer):
    with pytest.raises(Refused) as refused:
        words(*said.split())
    assert answer in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_class_refuses_under_the_name_of_its_option():
    with pytest.raises(Refused, match=r"^--method.level must not be 13"):
        ODD.make({"method.level": 13})
    with pytest.raises(Refused, match=r"^--views.flip must lie between 0 and 1, got 2"):
        Group("views", Views, prefix="views.").make({"views.flip": 2.0})
    with pytest.raises(Refused, match=r"^--batch_size must be at least 1"):
        Group("training", Train).make(words("--batch_size", "0"))


def test_yaml_round_trip_is_exact(tmp_path):
    values = words(
        *["--lr", "0.1", "--base_lr", "1e-05", "--img_size", "224", "96", "--method.share", ".123456789-.7", "--time", "8h", "--compile", "yes"]
    )
    values |= {"epochs": 1 / 3, "eps": 1e-20, "clip": None, "labels": "a: b #c", "model": "12", "weight_decay": 1e16}
    file = tmp_path / "config.yaml"
    file.write_text(dump(values))
    assert check(load(file), OPTIONS) == values
    assert "img_size: [224, 96]" in file.read_text()


def test_yaml_is_read_as_words_are(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text("lr: 1e-3\nimg_size: 64\ncompile: yes\nbatch_size: 32\nclip:\nmethod.share: 0.5\nbetas: [0.9, 0.99]\n")
    want = words(
        *[
            "--lr",
            "1e-3",
            "--img_size",
            "64",
            "--compile",
            "yes",
            "--batch_size",
            "32",
            "--clip",
            "none",
            "--method.share",
            ".5",
            "--betas",
            ".9",
            ".99",
        ]
    )
    assert check(load(file), OPTIONS) == want


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("epoch: 3", "unknown option epoch, did you mean epochs?"),
        ("lr: fast", "--lr: wants a number, got 'fast'"),
        ("batch_size: true", "--batch_size"),
        ("img_size: [1, 2, 3]", "wants 2 numbers"),
        ("format: 99", "format 99"),
        ("- 1", "name: value"),
        ("a: [", "no YAML"),
    ],
)
def test_wrong_yaml_is_refused(tmp_path, text, answer):
    file = tmp_path / "config.yaml"
    file.write_text(text)
    with pytest.raises(Refused) as refused:
        check(load(file), OPTIONS)
    assert answer in str(refused.value)


def test_the_length_said_last_counts():
    paper, file, typed = {"epochs": 800.0}, {"steps": 20, "lr": 1e-3, "time": None}, {"time": "8h"}
    assert layered(paper, file) == {"epochs": None, "steps": 20, "time": None, "lr": 1e-3}
    assert layered(paper, file, typed) == {"epochs": None, "steps": None, "time": "8h", "lr": 1e-3}
    assert layered(file, {"base_lr": 1e-4})["lr"] is None
    with pytest.raises(Refused, match="--epochs and --steps"):
        layered({"epochs": 1, "steps": 2})


def test_help_says_comment_and_default():
    text = help_text("unmask x", "says", [Group("training", Train, base=Train(epochs=800)), ODD])
    for part in (
        "--epochs X",
        "[800]",
        "--[no-]method.on",
        "a flag that is on [on]",
        "--clip_per all|module|tensor",
        "--method.sizes",
        "[1 2]",
        "never more than 10",
    ):
        assert part in text


def test_every_setting_has_a_comment():
    for cls in (Trunk, Input, Train, Views):
        assert all(Group("", cls).comments()[name] for name in Group("", cls).options())
