"""Tables of names: rows of (their prefix, our prefix), tried in order."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TypeAlias

from torch import Tensor

Rows: TypeAlias = Iterable[tuple[str, str]]


def in_ours(name: str, rows: Rows) -> str | None:
    """Their name by the first row that knows it; None where none does."""
    return next((ours + name.removeprefix(theirs) for theirs, ours in rows if name.startswith(theirs)), None)


def in_theirs(name: str, rows: Rows) -> str | None:
    """Our name by the first row that knows it; None where none does."""
    return next((theirs + name.removeprefix(ours) for theirs, ours in rows if name.startswith(ours)), None)


def all_in_ours(state: Mapping[str, Tensor], rows: Rows) -> dict[str, Tensor]:
    """Their tensors by our names; what the table does not name is left out."""
    table = list(rows)
    return {name: value for key, value in state.items() if (name := in_ours(key, table)) is not None}


def all_in_theirs(state: Mapping[str, Tensor], rows: Rows) -> dict[str, Tensor]:
    """Our learner's tensors by their names; what the table does not name (a teacher, say) is left out."""
    table = list(rows)
    return {name: value for key, value in state.items() if (name := in_theirs(key, table)) is not None}
