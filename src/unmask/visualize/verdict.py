"""What a run folder says, in plain sentences: did it learn, can it be told, what is wrong, what to do."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import Any, Literal

from unmask.run.records import COLLAPSED, FALL, METRICS, Figure, Rows, Run, number, said

Mark = Literal["good", "bad", "open", "note"]
BASELINES = (
    ("patch_mean", "filling each hidden patch with its own mean"),
    ("copy_nearest", "copying the nearest visible patch"),
    ("best_constant", "the best answer that is the same everywhere"),
    ("copy_noisy", "handing the noisy picture back"),
)
SAME = ("n_train", "n_val", "val", "img_size", "classes", "metric", "shots", "share")  # what must agree before two measurements are compared
ALIKE = "pictures look alike to the encoder"  # what the alarm of a run that trains says (training/monitor.py)
FEW = 4  # codes in even use under which a vocabulary has collapsed
HARDLY = 0.05  # of a baseline: a loss that is less than this below it has only begun to fall


@dataclass(frozen=True)
class Finding:
    """One sentence and what it means for the run: good, bad, open (cannot be told yet) or a note."""

    mark: Mark
    text: str


def verdict(run: Run) -> list[Finding]:
    """The findings about one run, the most telling first."""
    return [*_state(run), *_loss(run), *_validation(run), *_knn(run), *_evaluated(run), *_codes(run), *_rank(run), *_speed(run), *_bad(run)]


def final_loss(run: Run) -> float | None:
    """The mean loss of the last twentieth of the steps (at least ten, so that one batch does not decide)."""
    _, losses = run.column("loss")
    return statistics.fmean(losses[-max(10, len(losses) // 20) :]) if losses else None


def _state(run: Run) -> list[Finding]:
    why = str(run.status.get("why") or "").strip().rstrip(".")
    if run.state == "finished":
        return []
    if run.state == "failed":
        return [Finding("bad", f"The run failed at step {run.step:,}" + (f": {why}." if why else ": the end of log.txt says more."))]
    if run.state == "interrupted":
        return [Finding("open", f"The run was interrupted at step {run.step:,}" + (f" ({why})" if why else "") + "; it can be resumed exactly there.")]
    if run.state == "stopped":
        return [Finding("bad", f"Nobody trains this run any more: its process ended without a word after step {run.step:,} (killed, or the machine stopped). It can be resumed.")]
    return [Finding("open", f"The run is not finished: this page shows it up to step {run.step:,}.")]


def _loss(run: Run) -> list[Finding]:
    loss = final_loss(run)
    if loss is None:
        return [Finding("open", "No step has been written down yet, so nothing can be said about learning.")]
    if run.supervised:  # its loss is of distorted and mixed pictures: the validation says how good it is
        return []
    own = run.column("predicted")[1]  # where the loss holds more than the answer that the baselines belong to
    says, loss = (f"The loss is {loss:.3f}", loss) if not own else (f"The loss is {loss:.3f}, that of what is hidden {own[-1]:.3f}", own[-1])
    levels = [(told, statistics.fmean(values)) for key, told in BASELINES if (values := run.column(key)[1])]
    if not levels:
        return [Finding("open", f"{says}. There are no baselines beside it, so it cannot be told whether that is good."), *_falling(run)]
    beaten = [f"{told} ({level:.3f})" for told, level in levels if loss < level]
    ahead = [f"{told} ({level:.3f})" for told, level in levels if loss >= level]
    best = min(level for _, level in levels)
    if not ahead and loss > (1 - HARDLY) * best:
        first = Finding("open", f"{says}, only {1 - loss / best:.1%} lower than {beaten[0]}. It has hardly begun to learn: a longer run is the first thing to try.")
    elif not ahead:
        both = "both baselines" if len(levels) == 2 else "the baseline"
        first = Finding("good", f"{says}, lower than {both}: {' and '.join(beaten)}. It has learned something about what is hidden.")
    elif beaten:
        first = Finding("bad", f"{says}: lower than {beaten[0]}, but not lower than {ahead[0]}, which needs no network.")
    else:
        first = Finding("bad", f"{says}, not lower than {' or '.join(ahead)}. The network has not learned to predict what is hidden yet.")
    return [first, *_falling(run)]


def _falling(run: Run) -> list[Finding]:
    """Whether a longer run would go lower."""
    _, losses = run.column("loss")
    fifth = len(losses) // 5
    if fifth < 20:
        return []
    before, after = losses[-2 * fifth : -fifth], losses[-fifth:]
    noise = (statistics.variance(before) / fifth + statistics.variance(after) / fifth) ** 0.5
    drop = statistics.fmean(before) - statistics.fmean(after)
    if drop <= max(3 * noise, 0.005 * abs(statistics.fmean(before))):
        return []
    return [Finding("note", f"The loss still fell by {drop / statistics.fmean(before):.1%} over the last fifth of the steps: a longer run would probably go lower.")]


def _validation(run: Run) -> list[Finding]:
    """How good a fine-tuned network is on pictures that did not teach it, and whether it learns by heart."""
    findings = []
    for metric, name in METRICS.items():
        steps, values = run.column(metric)
        if not values:
            continue
        most, count = run.column("majority")[1], run.column("val_n")[1]
        told = f"{name} on {count[-1]:,.0f} pictures that do not teach" if count else f"{name} on pictures that do not teach"
        text = f"{told}: {said(metric, values[-1], unit=True)} at step {steps[-1]:,.0f}"
        floor = floor_of(metric, values[-1], most[-1] if metric == "top1" and most else None)
        if floor is not None:
            text += f", beside {floor[1]}"
        findings.append(Finding("bad" if floor is not None and values[-1] <= floor[0] else "good", f"{text}."))
    steps, losses = run.column("val_loss")
    if losses and losses[-1] > 1.05 * min(losses):
        lowest = steps[losses.index(min(losses))]
        findings.append(
            Finding(
                "open",
                f"The validation loss was lowest at step {lowest:,.0f} ({min(losses):.3f}) and is {losses[-1]:.3f} now: the network learns the pictures by heart. "
                "Fewer epochs, or stronger distortion and mixing, would help.",
            )
        )
    return findings


def floor_of(metric: str, value: float, majority: float | None) -> tuple[float, str] | None:
    """What an answer reaches that looks at no picture, and how it is called."""
    if metric == "top1" and number(majority):
        return float(majority), f"{majority:.1f} % for always answering the largest class"  # type: ignore[arg-type]
    if metric == "auroc":
        level = 50.0 if value > 1 else 0.5
        return level, f"{said(metric, level)} for guessing"
    return (0.0, "0 for always answering the mean") if metric == "r2" else None


def _knn(run: Run) -> list[Finding]:
    steps, values = run.column("knn")
    if not values:
        return []
    random = run.column("knn_random")[1]
    start, who = (random[-1], "the random encoder") if random else (values[0], f"the first measurement (step {steps[0]:.0f})")
    if not random and len(values) == 1:
        return [Finding("open", f"kNN while training: {values[0]:.1f} %, measured once; there is nothing to compare it with.")]
    tested = run.column("knn_n")[1]
    half = 1.96 * 100 * (max(start * (100 - start), 1.0) / 1e4 / tested[-1] * 2) ** 0.5 if tested else None  # of a difference of two shares
    change = f"kNN while training: {values[-1]:.1f} %, {who}: {start:.1f} %"
    if half is not None and abs(values[-1] - start) <= half:
        return [Finding("open", f"{change}. With {tested[-1]:.0f} test pictures the difference is within chance (about ±{half:.1f}).")]
    if values[-1] > start:
        return [Finding("good", f"{change}. The features have become more useful.")]
    return [Finding("bad", f"{change}. The features are not more useful than before; early in a run this is common.")]


def newest(evaluations: Rows) -> Rows:
    """The rows that have a figure, of repeated measurements (all that says how, alike) the last one only."""
    kept: dict[tuple, dict[str, Any]] = {}
    for row in evaluations:
        if Figure.of(row) is not None:
            how = (row.get("protocol"), bool(row.get("random")), row.get("pooling"), row.get("seed"), row.get("k"), str(row.get("encoder")), *comparable(row))
            kept.pop(how, None)
            kept[how] = row
    return list(kept.values())


def comparable(row: dict[str, Any]) -> tuple[str, ...]:
    """What must agree before two figures of one protocol are compared."""
    return tuple(str(row.get(name)) for name in SAME)


def _evaluated(run: Run) -> list[Finding]:
    """Each protocol's trained figure beside its random one, where both were measured on the same pictures."""
    findings = []
    rows = newest(run.evaluations)
    for protocol in dict.fromkeys(str(row.get("protocol")) for row in rows):
        trained, random = ([row for row in rows if str(row.get("protocol")) == protocol and bool(row.get("random")) is wanted] for wanted in (False, True))
        if not trained:
            continue
        ours = trained[-1]
        figure, rival = Figure.of(ours), next((Figure.of(row) for row in reversed(random) if comparable(row) == comparable(ours)), None)
        assert figure is not None
        told = f"evaluate {protocol}: {figure.name} {figure.text}"
        floor = floor_of(figure.metric, figure.value, ours.get("majority"))
        if floor is not None and (figure.low if figure.low is not None else figure.value) <= floor[0]:
            findings.append(Finding("bad", f"{told}, not shown to be above {floor[1]}."))
        if rival is None:
            more = " Measure the same network from random weights beside it (--random) before judging." if protocol in ("knn", "linear", "attentive") else ""
            findings.append(Finding("note", f"{told}{f' ({figure.between})' if figure.between else ''}.{more}"))
            continue
        text, above = f"{told} against {rival.text} of the random encoder", figure.above(rival)
        ending = {True: "; the intervals do not touch.", False: ": worse than random.", None: "; the intervals overlap, so a difference is not shown."}
        mark: dict[bool | None, Mark] = {True: "good", False: "bad", None: "open"}
        findings.append(Finding(mark[above], text + ending[above]))
    return findings


def _codes(run: Run) -> list[Finding]:
    """Of a tokenizer: whether its vocabulary is in use."""
    steps, used = run.column("codes_used")
    if not used:
        return []
    evenly = run.column("codes_as_many_as")[1][-1]
    told = f"{used[-1]:,.0f} codes are in use at step {steps[-1]:,.0f}, as evenly as {evenly:,.0f} equally frequent ones"
    if evenly < FEW:
        return [Finding("bad", f"{told}: nearly every square is the same word, and predicting it teaches nothing. A smaller --kl_weight or a longer run is the first thing to try.")]
    return [Finding("note", f"{told}.")]


def _rank(run: Run) -> list[Finding]:
    alarm = next((line.partition("warning: ")[2] for line in run.log if ALIKE in line), "")
    if alarm:
        return [Finding("bad", f"While it trained, {alarm}")]
    steps, ranks = run.column("rank")
    if not ranks:
        return []
    if ranks[-1] < COLLAPSED or ranks[-1] < FALL * max(ranks):
        return [
            Finding(
                "bad",
                f"The effective rank of the features fell to {ranks[-1]:.1f} (highest {max(ranks):.1f}): they are collapsing, pictures look alike to the encoder. "
                "A lower --lr or a longer warm-up is the first thing to try.",
            )
        ]
    return [Finding("note", f"Effective rank of the features: {ranks[-1]:.1f} at step {steps[-1]:,.0f}; no collapse.")]


def _speed(run: Run) -> list[Finding]:
    wait = run.column("data_wait")[1]
    if wait and (share := statistics.fmean(wait)) > 0.2:
        return [Finding("bad", f"The run waited for data {share:.0%} of the time: more --workers, smaller files or a faster disk would speed it up.")]
    return []


def _bad(run: Run) -> list[Finding]:
    findings = []
    if run.quarantine:
        many = len(run.quarantine)
        findings.append(Finding("note", f"{many:,} bad sample{'s were' if many > 1 else ' was'} replaced and listed in quarantine.jsonl."))
    skipped = sum(1 for row in run.rows if row.get("skipped"))
    if skipped:
        were = ("s", "were") if skipped > 1 else ("", "was")
        findings.append(Finding("bad", f"{skipped:,} step{were[0]} had a loss or gradients that were not finite and {were[1]} skipped."))
    return findings
