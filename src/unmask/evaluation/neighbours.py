"""Which pictures are near each other in an encoder's eyes: the nearest, the near-duplicates, the ones that stand alone.

Pure functions of features. Near means a large cosine. The search is exact and goes block by block: of n pictures never more than
`NUMBERS` similarities exist at once, so memory is the features' own.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

NUMBERS = 1 << 24  # similarities computed at once: 64 MiB
EXACT = 1e-6  # a distance below it is rounding: the pictures are the same to the encoder
CUT = 3.5  # deviations from the median beyond which a value is no longer one of the crowd (Iglewicz and Hoaglin, 1993)


def nearest(
    features: Tensor, queries: Tensor | None = None, k: int = 8, numbers: int = NUMBERS, told: Callable[[int, int], None] | None = None
) -> tuple[Tensor, Tensor]:
    """The k rows of `features (n, D)` with the largest cosine to each of `queries (m, D)`: cosines and row numbers, (m, k) each.

    Without queries each row looks among the others. Fewer than k rows: all of them, so the answer is narrower. `told`: called
    with how many queries are answered, of how many.
    """
    bank = F.normalize(features.float(), dim=1)  # (n, D)
    asking = bank if queries is None else F.normalize(queries.float(), dim=1)  # (m, D)
    k = min(k, len(bank) - (queries is None))
    similarities, ids = asking.new_empty(len(asking), k), torch.empty(len(asking), k, dtype=torch.int64, device=bank.device)
    block = max(1, numbers // max(len(bank), 1))
    for start in range(0, len(asking), block):
        part = asking[start : start + block]
        cosine = part @ bank.T  # (block, n)
        if queries is None:
            cosine.diagonal(start).fill_(-2.0)  # nobody is his own neighbour
        similarities[start : start + block], ids[start : start + block] = cosine.topk(k, dim=1)
        if told is not None:
            told(start + len(part), len(asking))
    return similarities.clamp(-1, 1), ids


def threshold(similarity: Tensor) -> tuple[float, str]:
    """The cosine from which two pictures count as near-duplicates, and how it was chosen, from each picture's largest `similarity (n,)`.

    In most folders a picture's nearest is just a similar one, and the logarithm of those distances spreads around its median;
    duplicates lie far below it. How far "far" is follows the crowd's own spread, because one encoder calls
    everything .99 alike and another nothing above .8.
    """
    distance = (1 - similarity.double()).clamp_min(EXACT).log10()  # (n,)
    middle = distance.median()
    deviation = float(1.4826 * (distance - middle).abs().median())  # of a normal crowd its standard deviation
    usual = 1 - 10 ** float(middle)
    if float(middle) <= math.log10(EXACT):
        return 1 - EXACT, "more than half of the pictures have an exact copy, so only exact copies count"
    chosen = 1 - max(EXACT, 10 ** (float(middle) - CUT * max(deviation, 0.05)))
    return chosen, f"a picture's nearest is usually at {plain(usual)}; {CUT:g} robust deviations of the (log) distances nearer counts as a duplicate"


def pairs(similarities: Tensor, ids: Tensor, least: float, crossing: bool = False) -> list[tuple[int, int, float]]:
    """Pairs at `least` or above among each row's nearest, the most alike first, each once.

    `crossing`: the rows ask and the ids belong to another set, so (row, id) is a pair as it stands.
    """
    rows, places = (similarities >= least).nonzero(as_tuple=True)
    others, values = ids[rows, places], similarities[rows, places]
    first, second = (rows, others) if crossing else (torch.minimum(rows, others), torch.maximum(rows, others))
    found: dict[tuple[int, int], float] = {}
    for one, two, value in zip(first.tolist(), second.tolist(), values.tolist()):
        found[one, two] = max(value, found.get((one, two), -1.0))
    return sorted(((one, two, value) for (one, two), value in found.items()), key=lambda pair: (-pair[2], pair[0], pair[1]))


def families(pairs: list[tuple[int, int, float]]) -> list[tuple[list[int], float]]:
    """Pictures that pairs tie together and the similarity of their closest pair, the largest family first.

    A burst of ten frames is one family and not forty-five pairs.
    """
    parent: dict[int, int] = {}

    def head(one: int) -> int:
        while parent.setdefault(one, one) != one:
            parent[one] = parent[parent[one]]
            one = parent[one]
        return one

    for one, two, _ in pairs:
        parent[head(one)] = head(two)
    found: dict[int, list[int]] = {}
    for one in sorted(parent):
        found.setdefault(head(one), []).append(one)
    closest = dict.fromkeys(found, -1.0)
    for one, _, value in pairs:
        closest[head(one)] = max(value, closest[head(one)])
    return sorted(((family, closest[name]) for name, family in found.items()), key=lambda each: (-len(each[0]), -each[1], each[0]))


def loneliness(similarities: Tensor) -> Tensor:
    """The mean cosine distance of each row to its nearest `similarities (n, k)`: large for a picture unlike all others."""
    return 1 - similarities.mean(dim=1)


def plain(similarity: float) -> str:
    """A cosine with as many digits as tell it from 1."""
    missing = 1 - similarity
    return "1" if missing <= EXACT else f"{similarity:.{max(3, 1 - math.floor(math.log10(missing)))}f}" if missing < 1 else f"{similarity:.3f}"
