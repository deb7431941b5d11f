"""Look at all of DATA before training on it: what is there, what is broken, what is the same twice."""

from __future__ import annotations

import os
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import numpy as np

from unmask.data.quarantine import BadSample
from unmask.data.raster import filled
from unmask.data.source import Source
from unmask.data.sources import open_source
from unmask.data.statistics import survey
from unmask.data.views import part
from unmask.errors import Refused

BLOCK = 512  # samples handed to the threads at once
SMALLER = 8.0  # of a JPEG too large to decode whole an eighth is looked at


@dataclass(frozen=True)
class _Seen:
    height: int
    width: int
    kind: str  # bands and depth
    deep: bool  # more than 8 bits
    constant: bool
    digest: bytes
    low: float
    high: float
    missing: float  # share of nodata
    frames: int
    window: tuple[float, float] | None
    patient: str | None


def inspect(
    data: Any,
    labels: Any = None,
    tile: int | None = None,
    window: Any = None,
    workers: int | None = None,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
    captions: str | None = None,
) -> dict[str, Any]:
    """A JSON-able report on every sample of DATA (a word or a Source). Exact duplicates are of equal decoded pixels.

    Of several frames the middle one is looked at, with `tile` of a larger picture the middle window. `captions`: a file of them; captions.jsonl in DATA is found without.

    `workers`: threads (Pillow decodes outside Python's lock); `progress(done, total)` is called now and then.
    """
    began = time.perf_counter()
    source = data if isinstance(data, Source) else open_source(data, labels)
    spoken = _spoken(source, captions)  # refused before anything is looked at
    seen: dict[int, _Seen] = {}
    bad: list[dict[str, str]] = []
    with ThreadPoolExecutor(workers or min(16, os.cpu_count() or 1)) as pool:
        for start in range(0, len(source), BLOCK):
            block = range(start, min(start + BLOCK, len(source)))
            for index, found in zip(block, pool.map(lambda index: _look(source, index, tile), block)):
                if isinstance(found, _Seen):
                    seen[index] = found
                else:
                    bad.append({"path": source.name(index), "reason": found})
            if progress:
                progress(block.stop, len(source))
    report: dict[str, Any] = {"data": str(data) if isinstance(data, str | os.PathLike) else type(source).__name__, "samples": len(source)}
    report |= {"readable": len(seen), "bad": bad, "said": list(source.said)}
    report |= _sizes(list(seen.values())) | {"kinds": dict(Counter(look.kind for look in seen.values()).most_common())}
    report |= _numbers(list(seen.values()))
    report["constant"] = [source.name(index) for index, look in seen.items() if look.constant]
    report["duplicates"] = _duplicates(source, seen)
    report["labels"], report["balance"] = _labels(source), source.labels.said() if source.labels is not None else []
    report["captions"] = spoken
    try:
        report["format"] = survey(source, seed=seed, tile=tile, window=window).as_dict()
    except Refused as error:
        report["format"], report["said"] = None, [*report["said"], str(error)]
    report["seconds"] = round(time.perf_counter() - began, 2)
    return report


def _look(source: Source, index: int, tile: int | None) -> _Seen | str:
    try:
        picture = source.picture(index)
        height, width, bands = picture.height, picture.width, picture.bands
        seen = part(picture, tile, None)
        array, valid = seen.stored(SMALLER if seen.oversized else 1.0)
        flat = np.ascontiguousarray(filled(array, valid))  # (H, W, C)
    except BadSample as error:
        return str(error)
    constant = bool((flat == flat[:1, :1]).all())
    digest = blake2b(flat.data, digest_size=16, person=f"{height}x{width}x{bands}"[:16].encode()).digest()
    kind = f"{bands} channel{'s' if bands > 1 else ''}, {picture.depth}"
    missing = 0.0 if valid is None else 1 - float(valid.mean())
    ends = float(flat.min()), float(flat.max())
    return _Seen(height, width, kind, not picture.eight_bit, constant, digest, *ends, missing, picture.frames, picture.own_window, picture.patient)


def _numbers(looks: list[_Seen]) -> dict[str, Any]:
    """What the numbers of deep pictures are, and what only some files know: nodata, frames, windows, patients."""
    deep = [look for look in looks if look.deep]
    found: dict[str, Any] = {"values": [min(look.low for look in deep), max(look.high for look in deep)] if deep else None}
    missing = [look.missing for look in looks if look.missing]
    found["nodata"] = {"share": sum(missing) / len(looks), "pictures": len(missing)} if missing else None
    frames = [look.frames for look in looks if look.frames > 1]
    found["frames"] = {"files": len(frames), "most": max(frames)} if frames else None
    windows = Counter(f"centre {look.window[0]:g} width {look.window[1]:g}" for look in looks if look.window is not None)
    found["windows"] = dict(windows.most_common()) or None
    patients = [look.patient for look in looks if look.patient is not None]
    found["patients"] = {"count": len(set(patients)), "files": len(patients)} if patients else None
    return found


def _sizes(looks: list[_Seen]) -> dict[str, Any]:
    """Common sizes, and the spread of the shorter side and of the aspect."""
    if not looks:
        return {"sizes": {}, "shorter_side": {}, "aspect": {}}
    sizes = Counter(f"{look.height} x {look.width}" for look in looks)
    shorter = np.array([min(look.height, look.width) for look in looks])
    aspect = np.array([look.width / look.height for look in looks])
    shares = {"smallest": 0, "5 %": 5, "median": 50, "95 %": 95, "largest": 100}
    return {
        "sizes": dict(sizes.most_common(10)),
        "different_sizes": len(sizes),
        "shorter_side": {name: float(np.percentile(shorter, share)) for name, share in shares.items()},
        "shorter_side_histogram": _histogram(shorter),
        "aspect": {name: round(float(np.percentile(aspect, share)), 3) for name, share in shares.items()},
    }


def _histogram(values: np.ndarray) -> dict[str, int]:
    """Counts between the powers of two."""
    powers = np.floor(np.log2(np.maximum(values, 1))).astype(int)
    return {f"{2**power}–{2 ** (power + 1) - 1}": int((powers == power).sum()) for power in range(powers.min(), powers.max() + 1)}


def _duplicates(source: Source, seen: dict[int, _Seen]) -> list[list[str]]:
    """Groups of samples with equal pixels."""
    groups: dict[bytes, list[int]] = defaultdict(list)
    for index, look in seen.items():
        groups[look.digest].append(index)
    return [[source.name(index) for index in group] for group in groups.values() if len(group) > 1]


def _labels(source: Source) -> dict[str, int] | None:
    if source.labels is None:
        return None
    counts, unknown = source.labels.known.sum() if source.labels.kind == "numbers" else source.labels.counts(), int((~source.labels.known).sum())
    named = {"(numbers)": int(counts)} if source.labels.kind == "numbers" else {name: int(n) for name, n in zip(source.labels.names, counts) if n}
    return named | ({"(no label)": unknown} if unknown else {})


def _spoken(source: Source, path: str | None) -> dict[str, Any] | None:
    """What is said of the pictures; None where nothing is."""
    from unmask.data.pairs import captions_of, holds_captions
    from unmask.text import words_of

    if path is None and not holds_captions(source):
        return None
    captions, said = captions_of(source, path)
    counts, texts = captions.counts, list(captions.words)
    spoken = [words_of(text) for text in texts]
    vocabulary = Counter(word for words in spoken for word in words)
    lengths = np.array([len(words) for words in spoken])
    found = {"captions": len(texts), "pictures": int((counts > 0).sum()), "said": said, "per_picture": _from_to(counts), "words": _from_to(lengths)}
    shared = len(texts) - len(set(texts))
    return found | {"vocabulary": len(vocabulary), "known": sum(count > 1 for count in vocabulary.values()), "shared": shared}


def _from_to(numbers: np.ndarray) -> str:
    """The least and the largest, and the one in the middle."""
    low, middle, high = (int(n) for n in (numbers.min(), np.median(numbers), numbers.max()))
    return f"{low}" if low == high else f"{low} to {high} (median {middle})"


def lines(report: dict[str, Any], most: int = 20) -> list[str]:
    """The report in words; every bad sample is named, of constant pictures and duplicates the first `most`."""
    bad, extra = report["bad"], sum(len(group) - 1 for group in report["duplicates"])
    out = [f"{report['data']}: {report['samples']:,} samples, {report['readable']:,} readable, {len(bad):,} bad", *report["said"]]
    if report["readable"]:
        side, aspect = report["shorter_side"], report["aspect"]
        out += [f"channels   {_counted(report['kinds'])}", f"sizes      {_counted(report['sizes'])}; {report['different_sizes']:,} different (height x width)"]
        out.append("shorter    " + ", ".join(f"{name} {value:g}" for name, value in side.items()))
        out += _bars(report["shorter_side_histogram"])
        out.append("aspect     " + ", ".join(f"{name} {value:g}" for name, value in aspect.items()) + " (width over height)")
        out += _said(report)
    if report["format"]:
        out += [f"as input   {said}" for said in report["format"]["said"]]
    if report["labels"]:
        out += [f"labels     {_counted(report['labels'])}", *(f"           {line}" for line in report["balance"])]
    if told := report["captions"]:
        out += [f"captions   {line.removeprefix('captions: ')}" for line in told["said"]]
        out.append("           {per_picture} a picture, {words} words each; {vocabulary:,} words, {known:,} of them twice or more; {shared:,} captions stand for several pictures".format(**told))
    out.append(f"duplicates {len(report['duplicates']):,} groups of equal pictures, {extra:,} could go")
    out += ["    " + " = ".join(group[:4]) + (" …" if len(group) > 4 else "") for group in report["duplicates"][:most]]
    out.append(f"constant   {len(report['constant']):,} pictures of one single value")
    out += [f"    {name}" for name in report["constant"][:most]]
    out.append(f"bad        {len(bad):,} samples")
    out += [f"    {one['path']}: {one['reason']}" for one in bad]
    out.append(f"looked at everything in {report['seconds']:g} s")
    return out


def _said(report: dict[str, Any]) -> list[str]:
    """The lines of `_numbers`, each only where there is something to say."""
    out = []
    if values := report["values"]:
        out.append(f"values     {values[0]:g} to {values[1]:g} where there are more than 8 bits")
    if nodata := report["nodata"]:
        out.append(f"nodata     {nodata['share']:.1%} of the values, in {nodata['pictures']:,} pictures")
    if frames := report["frames"]:
        out.append(f"frames     {frames['files']:,} files of several, up to {frames['most']:,}: one sample each, another frame each time it is seen")
    if windows := report["windows"]:
        out.append(f"windows    {sum(windows.values()):,} files hold one: {_counted(windows, 4)}")
    if patients := report["patients"]:
        out.append(f"patients   {patients['count']:,} in {patients['files']:,} files (counted by hash, never shown)")
        if 1 < patients["count"] < patients["files"]:
            out.append("    evaluation keeps them apart, unless the labels file has a group column that says otherwise")
    return out


def _counted(counts: dict[str, int], most: int = 12) -> str:
    shown = ", ".join(f"{name} ({count:,})" for name, count in list(counts.items())[:most])
    return shown + (f", and {len(counts) - most} more" if len(counts) > most else "")


def _bars(histogram: dict[str, int], width: int = 40) -> list[str]:
    most = max(histogram.values())
    return [f"    {name:>11} {'█' * max(round(width * count / most), count > 0)} {count:,}" for name, count in histogram.items()]
