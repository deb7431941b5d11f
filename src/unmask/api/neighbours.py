"""What an encoder finds alike: the nearest pictures of a query, near-duplicates and pictures that stand alone."""

from __future__ import annotations

import csv
import io
import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from unmask.api.asked import Look, check_data, settings_of, sight_of
from unmask.errors import Refused
from unmask.interchange.naming import identify
from unmask.settings import within

NEAR = 8  # neighbours among which near-duplicates are looked for, at least


@dataclass(frozen=True)
class Search:
    """What is looked for, and where it is written."""

    query: tuple[str, ...] | None = None  # pictures or folders whose nearest in DATA are wanted; not given: near-duplicates and outliers of DATA
    val: str | None = None  # other pictures, to judge by: does one of them have a near-duplicate in DATA?
    k: int = 8  # nearest pictures shown of each query; an outlier is far from its k nearest
    threshold: float | None = None  # cosine similarity from which two pictures are near-duplicates; not given: from the distribution, and said
    count: int = 24  # queries, duplicates and outliers drawn at most; the lists hold all
    outliers: int = 100  # pictures in the list of outliers, the loneliest first
    out: str = "neighbours.png"  # the picture to write; lists go beside it, under the same name
    pooling: Literal["auto", "cls", "avg", "cls+avg"] = "auto"  # what a picture's features are; auto: the class token where there is one

    def __post_init__(self):
        within(self, "k count outliers", 1)
        within(self, "threshold", -1, 1)


def neighbours(encoder: str | Path, data: Any, query: Any = None, **settings: Any) -> dict[str, Any]:
    """The nearest pictures in DATA of each of `query`; without one, DATA's near-duplicates and outliers. Lists and pictures are written too."""
    given = {} if query is None else {"query": [os.fspath(word) for word in ([query] if isinstance(query, str | os.PathLike) else query)]}
    look, asked = settings_of((Look, Search), settings | given)
    if Path(asked.out).suffix.lower() not in (".png", ".jpg", ".jpeg"):
        raise Refused(f"--out {asked.out} must end in .png or .jpg: it is a picture, and the lists go beside it")
    if asked.query and asked.val is not None:
        raise Refused("--query and --val answer different questions: the nearest of some pictures, or duplicates across a split; give one")
    identify(encoder)
    for words in (data, *(asked.query or ()), asked.val):
        check_data(words)
    found = _Look(encoder, data, look, asked)
    result = found.queries(list(asked.query)) if asked.query else found.folder()
    out = Path(asked.out).with_suffix(".json")
    _write(out, json.dumps(result, ensure_ascii=False, indent=1) + "\n")
    result["files"] = [*result["files"], str(out)]
    print("\n".join(result["files"]))
    return result


class _Look:
    """One encoder's features of DATA, and what is found with them."""

    def __init__(self, encoder: str | Path, data: Any, look: Look, asked: Search):
        self.encoder, self.look, self.asked, self.out = str(encoder), look, asked, Path(asked.out)
        self.opened, self.pictures, self.sight = sight_of(encoder, data, look, None)
        self.features, self.index = self._features(self.pictures)
        self.head = {"encoder": self.encoder, "random": look.random, "img_size": list(self.opened.img_size), "pictures": len(self.index)}
        self.out.parent.mkdir(parents=True, exist_ok=True)

    def _features(self, pictures: Any) -> tuple[Any, list[int]]:
        """Features (n, D) on the device, and the number in `pictures` of each row."""
        from unmask.evaluation.features import extract

        table = extract(self.opened, pictures, **self.sight)
        pooling = table.poolings[0] if self.asked.pooling == "auto" else self.asked.pooling
        if table.skipped:
            print(f"{table.skipped:,} unreadable pictures are left out")
        assert table.ids is not None
        return table.of(pooling).to(self.sight["device"]), table.ids.tolist()

    def _near(self, queries: Any, k: int) -> tuple[Any, Any]:
        from unmask.evaluation.neighbours import nearest

        similarity, ids = nearest(self.features, queries, k, told=_Told("neighbours"))
        return similarity.cpu(), ids.cpu()

    def queries(self, words: Sequence[str]) -> dict[str, Any]:
        """The nearest of each query, itself left out where it is one of DATA."""
        from unmask.evaluation.neighbours import plain
        from unmask.visualize.neighbours import nearest_sheet

        asked = sight_of(self.encoder, words[0] if len(words) == 1 else words, self.look, None, self.opened)[1]
        features, numbers = self._features(asked)
        similarity, ids = self._near(features, self.asked.k + 1)
        bank, found, rows = self.pictures.source, [], []
        real = {os.path.realpath(bank.name(i)): i for i in self.index}
        for number, values, places in zip(numbers, similarity.tolist(), ids.tolist()):
            path = asked.source.name(number)
            itself = real.get(os.path.realpath(path))
            near = [(self.index[place], value) for place, value in zip(places, values) if self.index[place] != itself][: self.asked.k]
            found.append(near)
            rows.append({"query": path, "nearest": [{"path": bank.name(i), "similarity": round(value, 6)} for i, value in near]})
        for row in rows[:3]:
            print(f"{row['query']}: " + ", ".join(f"{one['path']} ({plain(one['similarity'])})" for one in row["nearest"][:3]))
        few = self.asked.count
        nearest_sheet((asked, numbers[:few]), self.pictures, found[:few], self.encoder, self.out)
        table = [(row["query"], rank + 1, one["path"], one["similarity"]) for row in rows for rank, one in enumerate(row["nearest"])]
        files = [str(self.out), self._csv("", ("query", "rank", "path", "similarity"), table)]
        return {**self.head, "k": self.asked.k, "queries": rows, "files": files}

    def folder(self) -> dict[str, Any]:
        """Near-duplicates and outliers of DATA, and what they mean for a split."""
        from unmask.evaluation.neighbours import families, loneliness, pairs, plain, threshold
        from unmask.visualize.neighbours import families_sheet, lonely_sheet

        if len(self.index) < 2:
            raise Refused("one picture has no neighbours: give more, or ask with --query")
        asked, name = self.asked, self.pictures.source.name
        similarity, ids = self._near(None, max(asked.k, NEAR))
        least, why = (asked.threshold, "--threshold") if asked.threshold is not None else threshold(similarity[:, 0])
        print(f"near-duplicates: cosine similarity of {plain(least)} and more ({why})")
        twins = [(self.index[i], self.index[j], value) for i, j, value in pairs(similarity, ids, least)]
        groups = families(twins)
        alone = loneliness(similarity[:, : asked.k])
        order = alone.argsort(descending=True)[: asked.outliers].tolist()
        lonely = [(self.index[row], float(alone[row])) for row in order]
        usual = float(alone.median())
        many = sum(len(family) for family, _ in groups)
        print(f"{many:,} of {len(self.index):,} pictures have a near-duplicate, in {len(groups):,} families; {len(twins):,} pairs")
        print(f"outliers: the loneliest is {name(lonely[0][0])}, at a mean distance of {lonely[0][1]:.3g} to its {asked.k} nearest (usual: {usual:.3g})")
        files = [
            self._csv("duplicates", ("first", "second", "similarity"), [(name(i), name(j), round(value, 6)) for i, j, value in twins]),
            self._csv("outliers", ("path", "distance"), [(name(i), round(value, 6)) for i, value in lonely]),
        ]
        how = f"A cosine similarity of {plain(least)} and more counts: {why}."
        if groups:
            drawn = self._beside("duplicates")
            families_sheet(self.pictures, groups[: asked.count], f"Near-duplicates, as {self.encoder} sees them", [how], drawn)
            files.insert(0, str(drawn))
        drawn = self._beside("outliers")
        legend = [f"Before each name: the mean cosine distance to its {asked.k} nearest; {usual:.3g} is usual."]
        lonely_sheet(self.pictures, lonely[: asked.count], f"Unlike all others, as {self.encoder} sees them", legend, drawn)
        result = {
            **self.head,
            "threshold": least,
            "threshold_from": why,
            "duplicates": [{"first": name(i), "second": name(j), "similarity": round(value, 6)} for i, j, value in twins],
            "families": [[name(i) for i in family] for family, _ in groups],
            "outliers": [{"path": name(i), "distance": round(value, 6)} for i, value in lonely],
            "usual_distance": usual,
        }
        leaks = self._between(twins) if asked.val is None else self._against(least, how, files)
        return {**result, **leaks, "files": [*files, str(drawn)]}

    def _between(self, twins: Sequence[tuple[int, int, float]]) -> dict[str, Any]:
        """Pairs of near-duplicates that lie on two sides of DATA's own split."""
        source = self.pictures.source
        side = {int(i): split for split, indices in source.splits.items() for i in indices}
        crossing = [(i, j, value) for i, j, value in twins if side.get(i) != side.get(j)]
        if not side:
            return {}
        if crossing:
            print(f"warning: {len(crossing):,} pairs of near-duplicates lie on two sides of the split ({', '.join(source.splits)}): figures measured across it are too good")
        return {"across_splits": [{"first": source.name(i), "second": source.name(j), "similarity": round(value, 6)} for i, j, value in crossing]}

    def _against(self, least: float, how: str, files: list[str]) -> dict[str, Any]:
        """Pictures of --val that have a near-duplicate in DATA."""
        from unmask.evaluation.neighbours import pairs
        from unmask.visualize.neighbours import crossing_sheet

        judging = sight_of(self.encoder, self.asked.val, self.look, None, self.opened)[1]
        features, numbers = self._features(judging)
        similarity, ids = self._near(features, NEAR)
        shared = [(numbers[i], self.index[j], value) for i, j, value in pairs(similarity, ids, least, crossing=True)]
        theirs, ours = judging.source.name, self.pictures.source.name
        leaked = len({i for i, _, _ in shared})
        if leaked:
            print(f"warning: {leaked:,} of {len(numbers):,} pictures of --val have a near-duplicate in DATA: figures measured on them are too good")
        else:
            print(f"none of the {len(numbers):,} pictures of --val has a near-duplicate in DATA")
        files.append(self._csv("leaks", ("val", "data", "similarity"), [(theirs(i), ours(j), round(value, 6)) for i, j, value in shared]))
        if shared:
            drawn = self._beside("leaks")
            first = {i: (i, j, value) for i, j, value in reversed(shared)}  # the closest of each
            crossing_sheet(sorted(first.values(), key=lambda pair: -pair[2])[: self.asked.count], judging, self.pictures, [how], drawn)
            files.append(str(drawn))
        return {"val": str(self.asked.val), "leaked": leaked, "leaks": [{"val": theirs(i), "data": ours(j), "similarity": round(value, 6)} for i, j, value in shared]}

    def _beside(self, what: str) -> Path:
        return self.out.with_stem(f"{self.out.stem}-{what}")

    def _csv(self, what: str, head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
        path, text = (self._beside(what) if what else self.out).with_suffix(".csv"), io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([head, *rows])
        _write(path, text.getvalue())
        return str(path)


def _write(path: Path, text: str) -> None:
    """A whole file; a name that is no UTF-8 is written with its bytes spelled out."""
    from unmask.run.folder import write_whole

    write_whole(path, text.encode("utf-8", "backslashreplace").decode())


class _Told:
    """A line on stderr every five seconds of a long search."""

    def __init__(self, title: str):
        self.title, self.said = title, time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        if time.monotonic() - self.said > 5:
            self.said = time.monotonic()
            print(f"unmask: {self.title}: {done:,} of {total:,} pictures", file=sys.stderr)
