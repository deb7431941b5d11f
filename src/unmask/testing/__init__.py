"""The laws as functions, for parts of your own: each returns nothing, or raises an AssertionError that says what is wrong.

    def test_my_method(): unmask.testing.check_method(MyMethod())

`check_method` runs every law of a method; `check_masking` and `check_target` are the contracts of its parts. All sizes
are tiny: a law takes about a second on one core, that of two processes ten.
"""

from unmask.testing.cases import SMALL, Case, case_of, pictures
from unmask.testing.leak import check_leak
from unmask.testing.learning import check_gradients, check_graph, check_learning, check_saving
from unmask.testing.method import check_method
from unmask.testing.parts import check_masking, check_target
from unmask.testing.processes import check_processes

__all__ = [
    "SMALL", "Case", "case_of", "check_gradients", "check_graph", "check_leak", "check_learning", "check_masking", "check_method", "check_processes",
    "check_saving", "check_target", "pictures",
]
