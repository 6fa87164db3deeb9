"""Golden files of scoring and post-processing, within their tolerances; and comparisons that can fail."""

import json
import os
from pathlib import Path

import pytest

from adatad.dev.parity.verify_golden import run_content, run_data_file

SHARED = os.environ.get("ADATAD_SHARED")
FOLDER = Path(SHARED or "/nowhere") / "golden" / "data"
SCORING = ("nms.json", "map.json", "map_epic.json", "recall.json", "post.json", "lr.json")

pytestmark = pytest.mark.skipif(
    SHARED is None, reason="ADATAD_SHARED, the folder of the reference's goldens, isn't set"
)


def failures(path: Path) -> list[str]:
    return [f"{row.case}: {row.quantity}: {row.error:.2e}" for row in run_data_file(path) if not row.passed]


@pytest.mark.parametrize("name", SCORING)
def test_file_of_the_reference(name):
    assert failures(FOLDER / name) == []


def changed(tmp_path: Path, name: str, change) -> list[str]:
    content = json.loads((FOLDER / name).read_text())
    change(content)
    (tmp_path / name).write_text(json.dumps(content))
    return failures(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "change", "noticed"),
    [
        ("nms.json", lambda c: c["wrapper_cases"][6]["out_scores"].reverse(), "soft_gaussian_agnostic: nms: scores"),
        ("nms.json", lambda c: c["op_cases"][0]["keep"].pop(), "op_hard: nms: kept"),
        ("map.json", lambda c: c["cases"][3]["expected"]["metrics"].update({"recall@0.5@1": 0.1}),
         "ego4d_recall: map: metrics"),
        ("map_epic.json", lambda c: c["cases"][3].pop("mended"), "collides: epic, fixed: AP of classes"),
        ("recall.json", lambda c: c["cases"][0]["expected"]["avg_recall"].pop(), "ar_100: recall: curve"),
        ("post.json", lambda c: c["cases"][0]["results"]["v0"][0].update(score=0.0), "resize_own_classes: results"),
        ("post.json", lambda c: c["merge_cases"][1]["merged"].popitem(), "sliding_two_processes: joined"),
        ("post.json", lambda c: c["classifier_cases"][0]["out_labels"].reverse() or
         c["classifier_cases"][1]["out_labels"].reverse(), "cuhk_top2: classifier: labels"),
        ("lr.json", lambda c: c["cases"][0]["lrs"][5].reverse(), "thumos_100: learning rates"),
    ],
)  # fmt: skip
def test_a_changed_figure_is_noticed(tmp_path, name, change, noticed):
    assert any(noticed in line for line in changed(tmp_path, name, change))


@pytest.mark.parametrize("name", [*SCORING, "windows.json", "transforms.json"])
def test_a_case_that_cannot_be_run_fails_alone(name):
    content = json.loads((FOLDER / name).read_text())
    key = next(key for key, value in content.items() if isinstance(value, list))
    some = {"kind": name, key: [{"name": "bad"}, None, content[key][0]]}
    rows = run_content(name, some, FOLDER)
    failed = [row for row in rows if not row.passed]
    assert [row.quantity.startswith("can't be run: ") for row in failed] == [True, True]
    assert failed[0].case == "bad"
    assert len(rows) > len(failed)


def test_a_sample_may_have_no_proposals():
    for case in json.loads((FOLDER / "post.json").read_text())["cases"]:
        nothing = {"segments": [], "scores": [], "labels": []}
        empty = {
            **case, "proposals": [[] for _ in case["metas"]], "scores": [[] for _ in case["metas"]],
            "unrounded": dict.fromkeys(case["unrounded"], nothing), "results": {video: [] for video in case["results"]},
        }  # fmt: skip
        assert [row for row in run_content("post.json", {"cases": [empty]}, FOLDER) if not row.passed] == []


def test_a_subset_may_have_no_instances():
    for case in json.loads((FOLDER / "map.json").read_text())["cases"]:
        for entry in case["ground_truth"]["database"].values():
            entry["annotations"] = []
        none = [[] for _ in case["tious"]]
        case["expected"] |= {
            "metrics": dict.fromkeys(case["expected"]["metrics"], 0.0), "classes": [], "num_gt": 0,
            "ap_per_class": none, "recall_per_class": [[[] for _ in case["top_k"] or ()] for _ in case["tious"]],
        }  # fmt: skip
        assert [row for row in run_content("map.json", {"cases": [case]}, FOLDER) if not row.passed] == []
