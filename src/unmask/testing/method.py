"""Every law of a method, one after the other."""

from __future__ import annotations

from typing import Any

from unmask.model import Signal
from unmask.testing.cases import case_of
from unmask.testing.leak import check_leak
from unmask.testing.learning import check_gradients, check_graph, check_learning, check_saving
from unmask.testing.processes import check_processes


def check_method(method: Any, x: Signal | None = None, samples: int | None = None, processes: bool = True, **build: Any) -> None:
    """Every law of a method; without `processes` all but the slow one (see `case_of` for the rest)."""
    case = case_of(method, x, samples, **build)
    for law in (check_leak, check_gradients, check_graph, check_saving, check_learning):
        law(case)
    if processes:
        check_processes({type(method).__name__: case})
