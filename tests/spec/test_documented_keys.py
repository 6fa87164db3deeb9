"""docs/from-opentad.md, the hints, and the keys that both name."""

import re
from itertools import groupby
from pathlib import Path

import pytest

from adatad.spec import SpecError, load
from adatad.spec.keys import all_keys, fields_at
from adatad.spec.opentad import FLAGS, KEYS, WORDS, Renamed

PAGE = Path(__file__).parents[2] / "docs" / "from-opentad.md"
TEXT = (
    "data: {annotations: a.json, videos: v}\ncompat: reference\n"
    "optimizer: {backbone: {custom: [{name: adapter, lr: 1e-4}]}}\n"
)


@pytest.fixture
def spec_file(tmp_path) -> Path:
    path = tmp_path / "s.yaml"
    path.write_text(TEXT)
    return path


def problems(path: Path, *overrides: str) -> list[str]:
    with pytest.raises(SpecError) as caught:
        load(path, overrides, check_files=False)
    return caught.value.problems


def rows() -> list[str]:
    """The lines of the page's table of keys, as the hints have them."""
    lines = []
    for here, same in groupby(KEYS, key=lambda entry: entry.here):
        entries = list(same)
        example = f", such as `{entries[0].value}`" if entries[0].with_value else ""
        notes = "".join(f" ({entry.note})" for entry in entries if entry.note)
        lines.append(f"| {', '.join(f'`{entry.there}`' for entry in entries)} | `{here}`{example}{notes} |")
    return lines


def test_the_page_says_what_the_hints_say():
    text = PAGE.read_text()
    table = text[text.index("## Keys") : text.index("## External")]
    assert [line for line in table.splitlines() if line.startswith("| `")] == rows()


@pytest.mark.parametrize("entry", KEYS, ids=lambda entry: entry.there)
def test_each_row_of_the_page_gives_a_hint_whose_key_takes_the_value(spec_file, entry: Renamed):
    asked = entry.there.replace("*", "train")
    [line] = problems(spec_file, f"{asked}={entry.value}")
    hint = f"did you mean {entry.here}={entry.value}?" if entry.with_value else f"did you mean {entry.here}?"
    assert line.startswith(f"--set {asked}={entry.value}: {asked}: no such key; ")
    # In a section whose keys have their own names here, the hint is one of those.
    assert line.endswith(hint) or entry.there.endswith(".*")
    load(spec_file, [f"{entry.here}={entry.value}"], check_files=False)


def test_a_word_of_a_renamed_section_is_found_inside_it(spec_file):
    [line] = problems(spec_file, "post_processing.nms.iou_threshold=0.1")
    assert line.endswith("did you mean postprocess.nms.iou_threshold?")


@pytest.mark.parametrize(("word", "key"), WORDS.items())
def test_words_of_other_projects_lead_to_keys_that_exist(spec_file, word, key):
    assert key in all_keys()
    [line] = problems(spec_file, f"{word}=1")
    assert f"did you mean {key}" in line


@pytest.mark.parametrize(
    ("override", "hint"),
    [
        ("train.epochs=3", "schedule.epochs"),
        ("epochs=3", "schedule.epochs"),
        ("optimizer.learning_rate=1", "optimizer.lr"),
        ("optimizer.backbone.learning_rate=1", "optimizer.backbone.lr"),
        ("optimizer.backbone.custom.0.learning_rate=1", "optimizer.backbone.custom.0.lr"),
        ("solver.train.batch_size=4", "train.global_batch"),
        ("model.frozen=true", "model.backbone.mode"),
        ("train.lr=1", "optimizer.lr, optimizer.backbone.lr or optimizer.backbone.custom.0.lr"),
        ("window_size=3", "data.window.size_grid"),
        ("model.projection.attn_cfg.n_mha_win_size=9", "model.detector.attention_window"),
        ("Train.Seed=3", "train"),
        ("train.SEED=3", "train.seed"),
        ("postproces.nms.sigma=1", "postprocess"),
        ("sed=3", "train.seed"),
    ],
)
def test_a_wrong_key_is_looked_for_in_all_sections(spec_file, override, hint):
    [line] = problems(spec_file, override)
    assert line.endswith(f"did you mean {hint}?")


def test_a_section_of_opentad_in_a_file_names_each_of_its_keys_and_suggests_nothing_of_other_problems(spec_file):
    spec_file.write_text(TEXT + "solver:\n  train: {batch_size: 3}\n  amp: true\ntrain: {accumulation: 3}\n")
    where = f"{spec_file}:5: solver: no such key; "
    keys = "solver.train.batch_size is train.global_batch here, solver.amp is train.precision=auto here"
    # Not that 2, the default of the global batch, can't be divided by 3.
    assert problems(spec_file) == [where + keys]


def test_all_keys_are_keys():
    assert len(all_keys()) > 120
    for key in all_keys():
        *section, last = key.split(".")
        assert last in fields_at(tuple(int(part) if part.isdigit() else part for part in section)), key


@pytest.mark.parametrize(("flag", "instead"), [("--seed", "--set train.seed=7"), ("--lr", "--set optimizer.lr=7")])
def test_flags_of_other_trainers_are_answered(run_command, flag, instead):
    for given in ([flag, "7"], [f"{flag}=7"]):
        run = run_command("spec", "configs/demo/tia.yaml", *given)
        assert run.returncode == 2
        assert run.stderr.endswith(f"{flag}: is none of this command's options here; instead: {instead}\n")


def test_what_is_proposed_instead_of_a_flag_can_be_set(spec_file):
    for asked, instead in FLAGS.values():
        if setting := re.match(r"--set (\S+)", instead):
            value = "runs" if asked == "FOLDER" else "1"
            load(spec_file, [setting[1].format(value), "schedule.warmup_epochs=0"], check_files=False)


def test_flags_that_the_page_names_are_known():
    text = PAGE.read_text()
    commands = text[text.index("## Commands") : text.index("## Names")]
    cells = [line.split(" | ")[0] for line in commands.splitlines() if line.startswith("| `")]
    ours = {"--nproc_per_node", "--id", "--resume", "--cfg-options", "--checkpoint"}
    flags = {flag for cell in cells for flag in re.findall(r"--[a-z_-]+", cell)}
    assert {"--seed", "--not_eval"} <= flags <= ours | set(FLAGS)
