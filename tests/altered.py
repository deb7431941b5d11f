"""MAE with something done to it: what a law should find."""

import functools

from unmask.methods.mae import MAE
from unmask.testing import Case, case_of


class Altered(Case):
    """MAE with something done to its learner."""

    def learner(self, seed=0):
        learner = super().learner(seed)
        self.build.keywords["alter"](learner)
        return learner


def build_altered(alter, **words):
    return MAE(decoder_depth=1).build(**words)


def altered(alter) -> Case:
    case = case_of(MAE())
    return Altered(functools.partial(build_altered, alter=alter, **case.build.keywords), case.x, case.samples)
