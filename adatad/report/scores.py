"""Scores of a run: printed at its end, and compared with published ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from rich.table import Table

from adatad.files import shown, write_text
from adatad.printing import print_table
from adatad.report.last_and_best import WORDS, Evaluation, LastAndBest, in_result
from adatad.spec import Select, Spec

# As docs/model-zoo.md and `adatad reproduce --help` have it.
BAND = 0.5
"""Points of average mAP by which a repeated training may differ from the published figure."""
AVERAGE = "average_mAP"


def print_scores(spec: Spec, result: dict[str, Any]) -> None:
    """Print mAP, average and by tIoU, of a run's last and best epoch, with published values beside it, and the mAP
    before training."""
    # Without an instance there is no AP, and an average of nothing would look like a score of 0.
    if not result["ap_per_class"]:
        subset = spec.data.validation_subset
        print(f"{shown(spec.name)}: {shown(spec.data.annotations)} has no instances in {subset!r}: nothing was scored")
        return
    untrained, columns = result.get("untrained_average_mAP"), _columns(spec, result)
    table = Table("mAP", *columns, title=shown(spec.name))
    for name in (AVERAGE, *result["mAP"]):
        # An empty cell for tIoUs that weren't published.
        cells = [f"{figures[name]:.2f}" if name in figures else "" for figures in columns.values()]
        what, style = ("average", "bold") if name == AVERAGE else (f"tIoU {name}", None)
        table.add_row(what, *cells, style=style)
    # Nothing is published beside recall and groups.
    for tiou, by_k in result.get("recall", {}).items():
        for k, value in by_k.items():
            table.add_row(f"recall@{k}x, tIoU {tiou}", f"{100 * value:.2f}")
    for name, group in result.get("groups", {}).items():
        table.add_row(f"average, {shown(name)} ({group['instances']} instances)", f"{100 * group['average_mAP']:.2f}")
    if untrained is not None:
        table.add_row("untrained, average", f"{100 * untrained:.2f}")
    print_table(table)


def _columns(spec: Spec, result: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Return figures in percent, by name, under the heading of their column: the run's, then the published ones."""
    last, best = in_result(result)
    if best is None or best.epoch is None:
        # A checkpoint that was tested: its one evaluation is neither the first nor the last.
        columns = {"%": _figures(last)}
    else:
        pairs: tuple[tuple[Select, Evaluation], ...] = (("last", last), ("best", best))
        columns = {f"{WORDS[select]} ({which.epoch})": _figures(which) for select, which in pairs}
    if spec.published:
        columns[f"published ({WORDS[spec.published_select]})"] = spec.published
    if spec.published_last and spec.published_select != "last":
        columns[f"published ({WORDS['last']})"] = spec.published_last
    return columns


def _figures(evaluation: Evaluation) -> dict[str, float]:
    """Return mAP in percent, average and by tIoU."""
    return {name: 100 * value for name, value in {AVERAGE: evaluation.average_mAP, **evaluation.by_tiou}.items()}


def print_summary(spec: Spec, result: dict[str, Any], run_directory: Path) -> None:
    """Print the scores, and where the run's files are."""
    print_scores(spec, result)
    for what, name in (
        ("report", "report.html"),
        ("timelines", "timelines"),
        ("detections", "detections.json"),
        ("TensorBoard", "tensorboard"),
    ):
        print(f"{what:12} {shown(run_directory / name)}")


class ComparedFigure(NamedTuple):
    """One figure in percent. name: average_mAP, or the tIoU."""

    name: str
    published: float
    obtained: float

    @property
    def difference(self) -> float:
        """Points by which the obtained figure is higher."""
        return self.obtained - self.published


class Reproduction(NamedTuple):
    """Figures, published and obtained. verdict: within, above or below the band, by average mAP; or unpublished.
    obtained: the run's evaluations; select: which of them is compared, None for the only one, of a checkpoint."""

    figures: tuple[ComparedFigure, ...]
    verdict: str
    obtained: LastAndBest
    select: Select | None

    @property
    def accepted(self) -> bool:
        """False if the average mAP is below the band."""
        return self.verdict != "below"


def compare_with_published(spec: Spec, result: dict[str, Any]) -> Reproduction:
    """Compare a result with the spec's published figures: a run's best epoch if those are of the best, else its last.
    result: content of result.json, mAP in 0..1."""
    pair, published = in_result(result), spec.published or {}
    is_trained = pair.best is not None and pair.best.epoch is not None
    # Like with like. Where nobody said which the published one is, the last: it flatters nobody.
    select: Select = "best" if spec.published_select == "best" and is_trained else "last"
    obtained = _figures(pair.best if select == "best" else pair.last)
    names = [name for name in (AVERAGE, *result["mAP"]) if name in published and name in obtained]
    figures = tuple(ComparedFigure(name, published[name], obtained[name]) for name in names)
    verdict = "unpublished"
    if AVERAGE in names:
        # To the digits in which figures are published: 0.5 less than 69.03 is 68.53.
        difference = round(figures[0].difference, 2)
        verdict = "within" if abs(difference) <= BAND else "above" if difference > 0 else "below"
    return Reproduction(figures, verdict, pair, select if is_trained else None)


def verdict_line(spec: Spec, reproduction: Reproduction) -> str:
    """Return the verdict as a sentence, and which epochs the figures are of."""
    if reproduction.verdict == "unpublished":
        return f"{spec.name}: no average mAP was published to compare with"
    average = reproduction.figures[0]
    word = {"within": "reproduced", "above": "better than published", "below": "not reproduced"}[reproduction.verdict]
    ours = "this checkpoint" if reproduction.select is None else WORDS[reproduction.select]
    return (
        f"{spec.name}: {word}: average mAP {average.obtained:.2f}, published {average.published:.2f} "
        f"({average.difference:+.2f}; accepted: {BAND} to either side); published: {WORDS[spec.published_select]}, "
        f"compared with: {ours}"
    )


def write_reproduction(folder: Path, spec: Spec, result: dict[str, Any], how: str) -> Reproduction:
    """Write reproduction.json and reproduction.md into a folder. how: a line that says where the figures come from."""
    reproduction = compare_with_published(spec, result)
    best = reproduction.obtained.best
    # All of the result's figures stand in it, so that the comparison can be made again without the run.
    content = {
        "spec": spec.name,
        "reference": spec.reference,
        "how": how,
        "band": BAND,
        "verdict": reproduction.verdict,
        "published_select": spec.published_select,
        "compared_select": reproduction.select,
        "figures": [{**figure._asdict(), "difference": figure.difference} for figure in reproduction.figures],
        "obtained": {"average_mAP": result["average_mAP"], "mAP": result["mAP"], "recall": result.get("recall", {})},
        "best": best.content() if best else None,
    }
    write_text(folder / "reproduction.json", json.dumps(content, indent=1) + "\n")
    # All tIoUs are in the table, also those that nobody has published.
    published = {figure.name: figure for figure in reproduction.figures}
    rows = []
    compared = best if reproduction.select == "best" and best else reproduction.obtained.last
    for name, value in _figures(compared).items():
        figure = published.get(name)
        theirs = f"{figure.published:.2f} | {figure.difference:+.2f}" if figure else " | "
        rows.append(f"| {'average' if name == AVERAGE else name} | {value:.2f} | {theirs} |")
    table = "\n".join(["| mAP at tIoU | obtained | published | difference |", "| --- | --- | --- | --- |", *rows])
    both = f"\n\n{reproduction.obtained.describe()}" if reproduction.select else ""
    page = f"# {spec.name}\n\n{verdict_line(spec, reproduction)}{both}\n\n{how}\n\n{table}\n"
    write_text(folder / "reproduction.md", page)
    return reproduction
