"""Loading: inheritance, overrides, sources, and errors that say all that is wrong."""

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from adatad.spec import SpecError, load, to_yaml
from adatad.spec.document import Document, merge, parse_value
from adatad.spec.load import load_with_sources

ROOT = Path(__file__).parents[2]
CONFIGS = [path for path in sorted((ROOT / "configs").rglob("*.yaml")) if "base" not in path.relative_to(ROOT).parts]
MINIMAL = "data: {annotations: a.json, videos: v}\noptimizer: {backbone: {custom: [{name: adapter, lr: 1e-4}]}}\n"


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text)
    return path


def problems(path: Path, *overrides: str) -> list[str]:
    with pytest.raises(SpecError) as caught:
        load(path, overrides, check_files=False)
    return caught.value.problems


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_shipped_spec_loads_and_comes_back(path, tmp_path):
    spec = load(path, check_files=False)
    assert spec.name == str(path.relative_to(ROOT / "configs").with_suffix(""))
    assert load(write(tmp_path, "again.yaml", to_yaml(spec)), check_files=False) == spec


def test_base_files_merge_deeply_and_lists_replace(tmp_path):
    write(tmp_path, "a.yaml", "train: {seed: 1, global_batch: 4}\nevaluate: {tious: [0.1, 0.2]}\n")
    write(tmp_path, "b.yaml", "base: a.yaml\ntrain: {seed: 2}\n")
    path = write(tmp_path, "c.yaml", "base: b.yaml\nevaluate: {tious: [0.5]}\n" + MINIMAL)
    spec, document = load_with_sources(path, ["train.clip_norm=null"], check_files=False)
    assert (spec.train.seed, spec.train.global_batch, spec.evaluate.tious) == (2, 4, (0.5,))
    assert document.source(("train", "seed")).endswith("b.yaml:2")
    assert document.source(("train", "global_batch")).endswith("a.yaml:1")
    assert document.source(("train", "clip_norm")) == "--set train.clip_norm=null"
    assert document.source(("train", "precision")) is None


values = st.recursive(st.integers() | st.lists(st.integers(), max_size=2), lambda inner: st.dictionaries(
    st.sampled_from("abc"), inner, max_size=3), max_leaves=8)  # fmt: skip
mappings = st.dictionaries(st.sampled_from("abc"), values, max_size=3)


def merged(*layers):
    document = Document()
    for layer in layers:
        merge(document, Document(values=yaml.safe_load(yaml.safe_dump(layer))))
    return document.values


@given(mappings, mappings, mappings)
def test_merging_is_associative_and_the_last_word_counts(a, b, c):
    assert merged(a, b, c) == merged(merged(a, b), c)
    assert merged(a, a) == a
    assert all(merged(a, b)[key] == value for key, value in b.items() if not isinstance(value, dict))


def test_overrides_reach_into_lists_and_make_missing_sections(tmp_path):
    path = write(tmp_path, "s.yaml", MINIMAL)
    spec = load(
        path, ["optimizer.backbone.custom.0.lr=3e-4", "model.backbone.adapter.blocks=[1, 2]"], check_files=False
    )
    assert spec.optimizer.backbone.custom[0].lr == 3e-4
    assert spec.model.backbone.adapter.blocks == (1, 2)


@pytest.mark.parametrize(("text", "value"), [("1e-4", 1e-4), ("-2E3", -2e3), ("0.5", 0.5), ("7", 7), ("a", "a")])
def test_numbers_without_a_point_are_numbers(text, value):
    assert parse_value(text) == value
    assert type(parse_value(text)) is type(value)


def test_all_errors_at_once_with_place_and_nearest_word(tmp_path):
    text = MINIMAL + "model:\n  backbone: {mod: plain, preset: gaint}\ntrain:\n  seed: x\n"
    found = problems(write(tmp_path, "s.yaml", text), "optimizer.lr=-1", "train.presicion=fp16")
    assert len(found) == 5
    text = "\n".join(found)
    assert "s.yaml:4: model.backbone.mod: no such key; did you mean model.backbone.mode?" in text
    assert "s.yaml:4: model.backbone.preset: expected 'tiny'" in text
    assert "did you mean giant?" in text
    assert "s.yaml:6: train.seed: " in text
    assert "--set optimizer.lr=-1: optimizer.lr: Input should be greater than 0, got -1" in text
    assert "train.presicion: no such key; did you mean train.precision?" in text


def test_a_key_with_a_hyphen_is_named_whole_and_where_it_stands(tmp_path):
    path = write(tmp_path, "s.yaml", MINIMAL + "\ntrain: {global-batch: 4}\n")
    assert problems(path) == [f"{path}:4: train.global-batch: no such key; did you mean train.global_batch?"]


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("memory.policy=tiles", "'block' or 'tile', or a list, got 'tiles'; did you mean tile?"),
        ("data.classes=3", "Input should be a valid string, or a list, got 3"),
        ("model.backbone.adapter.blocks=[0,-1]", "Input should be greater than or equal to 0, got -1"),
        ("evaluate.tious=0.5", "expected a list, got 0.5"),
        ("evaluate.tious=[0]", "Input should be greater than 0, got 0"),
        ("optimizer.lr=.inf", "Input should be a finite number, got inf"),
        ("model.detector.regression_weight=.nan", "Input should be a finite number, got nan"),
    ],
)  # fmt: skip
def test_a_wrong_value_gives_one_line(tmp_path, override, line):
    found = problems(write(tmp_path, "s.yaml", MINIMAL), override)
    assert len(found) == 1
    assert found[0].startswith(f"--set {override}: {override.partition('=')[0]}")
    assert found[0].endswith(line)


def test_wrong_keys_hide_neither_contradictions_nor_missing_files(tmp_path):
    overrides = [
        "foo", "traim.x=1", "train.global_batch=3", "train.accumulation=2", "data.window.size_grid=100",
        "model.backbone.adapter.blocks=[99]", "data.annotations=nope.json", "optimizer.eps=small",
    ]  # fmt: skip
    with pytest.raises(SpecError) as caught:
        load(write(tmp_path, "s.yaml", MINIMAL.replace("videos: v", f"videos: {tmp_path}")), overrides)
    wrong = ("foo: expected", "traim: no such", "global_batch: 3", "size_grid: 100", "block 99", "nope.json", "eps: ")
    assert len(caught.value.problems) == len(wrong)
    assert all(any(words in line for line in caught.value.problems) for words in wrong)


@pytest.mark.parametrize(
    ("text", "override"),
    [
        # Each would be a contradiction, or a missing file, if the default stood where the wrong value does.
        ("model: {backbone: {preset: huge, adapter: {blocks: [31]}}}", "model.backbone.preset=hugh"),
        ("optimizer: {backbone: null}\nmodel: {backbone: {mode: frozen}}", "model.backbone.mode=froze"),
        ("optimizer: {}\nmodel: {backbone: {mod: frozen}}", ""),
        ("optimizer: {bakcbone: {custom: [{name: adapter, lr: 1}]}}", ""),
        ("train: {accumulation: 2, global_batch: 4}", "train.global_batch=four"),
        ("traim: {global_batch: 4}\ntrain: {accumulation: 4}", ""),
        ("optimizer: {backbone: {custom: [{name: adapter, lr: fast}]}}", ""),
        ("optimizer: {backbone: {custom: [{name: adapter}]}}", ""),
        ("schedule: 5\ntrain: {seed: 1}", ""),
        ("train: {accumulation: 4}", "train.global_batch"),
    ],
)
def test_nothing_is_concluded_from_what_is_wrong(tmp_path, text, override):
    lines = {line.partition(":")[0]: line for line in (MINIMAL + text).splitlines()}
    lines["data"] = f"data: {{annotations: {tmp_path / 's.yaml'}, videos: {tmp_path}}}"
    path = write(tmp_path, "s.yaml", "\n".join(lines.values()))
    with pytest.raises(SpecError) as caught:
        load(path, [override] if override else [])
    assert len(caught.value.problems) == 1, caught.value


def test_a_missing_key_does_not_hide_the_rest(tmp_path):
    found = problems(write(tmp_path, "s.yaml", "data: {videos: v}\nmodel: {backbone: {heads: 5}}\n"))
    text = "\n".join(found)
    assert "s.yaml:1: data.annotations: is missing" in text
    assert "384 can't be divided by 5 heads" in text
    assert "optimizer.backbone: is missing" in text
    assert len(found) == 3


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.seed", "expected KEY=VALUE"),
        ("optimizer.backbone.custom.2.lr=1", "optimizer.backbone.custom is a list of 1, which has no item 2"),
        ("train.seed.low=1", "train.seed is a single value"),
        ("train.seed=[1", "isn't a YAML value"),
    ],
)
def test_bad_overrides(tmp_path, override, message):
    path = write(tmp_path, "s.yaml", MINIMAL + "train: {seed: 1}\n")
    assert message in "\n".join(problems(path, override))


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("data.pattern={name}.mp4", "{name}.mp4"),
        ("data.pattern={name}", "{name}"),
        ("data.pattern='{name}.mp4'", "{name}.mp4"),
        ('data.pattern="{name}.mp4"', "{name}.mp4"),
        ("data.annotations=[a].json", "[a].json"),
        ("data.annotations=a: b: c", "a: b: c"),
        ("data.annotations=a: b", "a: b"),
        ("data.annotations=!a", "!a"),
        ("data.annotations=*.json", "*.json"),
        ("data.classes=[a].txt", "[a].txt"),
        ("data.classes=[a, b]", ("a", "b")),
        ("data.classes=null", None),
        ("name=%j", "%j"),
        ("name=@x", "@x"),
        ("name=`x`", "`x`"),
        ("name=[a", "[a"),
    ],
)
def test_text_that_is_no_yaml_is_taken_as_text(tmp_path, override, value):
    found = load(write(tmp_path, "s.yaml", MINIMAL), [override], check_files=False)
    for part in override.partition("=")[0].split("."):
        found = getattr(found, part)
    assert found == value


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("evaluate.tious=[0.3,", "--set 'evaluate.tious=[a, b]'"),
        ("data.classes=[a,", "--set 'data.classes=[a, b]'"),
        ("memory={policy: tile", "isn't a YAML value"),
        ("model.backbone.adapter.blocks=[1].x", "isn't a YAML value"),
        ("name='a", "quote text as --set 'name=\"...\"'"),
        ("memory.policy=@x", "'tile', or a list, got '@x'"),
        ("train.seed=%3", "train.seed: Input should be a valid integer"),
        ("train.sed=@x", "did you mean train.seed?"),
        ("data=@x", "expected a section with keys of its own, got '@x'"),
        (f"name={'x' * 5000}", "5,000 characters"),
        (f"name=@{'x' * 5000}", "isn't a YAML value"),
        (f"memory.policy={'[' * 50}", "isn't a YAML value"),
        (f"train.seed={9**99}", "larger than any number"),
    ],
)
def test_what_cannot_be_text_is_refused_with_how_to_quote(tmp_path, override, message):
    [line] = problems(write(tmp_path, "s.yaml", MINIMAL), override)
    assert message in line


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected a mapping"),
        ("- 1", "expected a mapping"),
        ("train: {seed: 1}\ntrain: {}", "s.yaml:2: train stands twice"),
        ("train:\n\tseed: 1", "not valid YAML"),
        ("base: gone.yaml", "gone.yaml: no such file"),
        ("base: s.yaml", "its base files lead back to it"),
        ("base: [3]", "expected a path"),
        ("train: {}\nbase: 5", "s.yaml:2: base: expected a path or a list of paths, got 5"),
        ("base:", "base: expected a path or a list of paths, got None"),
        ("base: {a: b}", "base: expected a path or a list of paths, got {'a': 'b'}"),
        ("train:\n  on: 1", "s.yaml:2: train: expected a name as key, got True"),
        ("train: {}", "data: is missing"),
    ],
)
def test_bad_files(tmp_path, text, message):
    assert message in "\n".join(problems(write(tmp_path, "s.yaml", text)))


def test_missing_files_are_named(tmp_path):
    path = write(tmp_path, "s.yaml", MINIMAL)
    with pytest.raises(SpecError, match=r"there is no file a\.json") as caught:
        load(path, ["data.classes=c.txt", "model.backbone.weights=w.safetensors"])
    assert len(caught.value.problems) == 4


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.window.size_grid=100"], "data.window.size_grid: 100 x 1 frames a position aren't whole clips of 16"),
        (["data.window.frames_per_position=3"], "data.window.stride_frames: 4 can't be divided by"),
        (["data.window.crop_ratio=[0.9,0.5]"], "isn't [low, high]"),
        (["data.pattern=x.mp4"], "doesn't hold {name}"),
        (["data.classes=[a,a]"], "names a class twice"),
        (["model.backbone.heads=5"], "the width 384 can't be divided by 5 heads"),
        (["model.backbone.adapter.blocks=[11,12]"], "block 12 is outside the backbone, whose 12 blocks count from 0"),
        (["model.backbone.adapter.blocks=[]"], "is empty"),
        (["model.backbone.adapter.kernel=4"], "expected an odd number, got 4"),
        (["model.detector.max_length=1000"], "needs a multiple of"),
        (["model.detector.attention_window=3"], "expected -1 (global) or 4 and more, got 3"),
        (["model.detector.attention_window=[-1,-1]"], "2 windows for 6 levels"),
        (["model.detector.branch_blocks=3"], "6 ranges for 4 levels"),
        (["model.detector.heads=7"], "512 can't be divided by 7 heads"),
        (["optimizer.backbone=null"], "is missing: mode adapter trains parameters of the backbone"),
        (["optimizer.backbone.custom=[]"], "no group takes the adapters"),
        (["model.backbone.mode=frozen"], "is without effect: nothing in the backbone is trained"),
        (["optimizer.layer_decay=0.8"], "is for model.backbone.mode full; the mode is adapter"),
        (["schedule.end_epoch=200"], "200 is after the last of 100 epochs"),
        (["schedule.epochs=3"], "the warm-up (5 epochs) is longer than the schedule (3)"),
        (["train.accumulation=4"], "2 can't be divided by accumulation 4"),
        (["postprocess.nms.voting_threshold=0.7"], "is without effect while multiclass is true"),
        (["postprocess.nms.max_segments=0"], "keeps no detection at all"),
        (["postprocess.classifier.kind=cuhk"], "postprocess.classifier.file: kind cuhk needs one"),
        (["postprocess.classifier.kind=cuhk"], "--set model.detector.class_agnostic=true"),
        (["postprocess.classifier.kind=pseudo"], "pseudo_label: kind pseudo needs one"),
        (["postprocess.classifier.kind=pseudo", "postprocess.classifier.file=a"], "without effect with kind pseudo"),
        (
            ["postprocess.classifier.kind=cuhk", "postprocess.classifier.pseudo_label=a"],
            "without effect with kind cuhk",
        ),
        (["postprocess.classifier.kind=cuhk", "postprocess.classifier.apply_softmax=true"], "it belongs to standard"),
        (["postprocess.classifier.topk=2"], "postprocess.classifier.kind: is missing and has no default"),
        (["postprocess.classifier.kind=chuk"], "did you mean cuhk?"),
        (["model.detector.regression_weight=0", "train.accumulation=2"], "follows the losses of a whole batch"),
    ],
)
def test_contradictions_are_refused(tmp_path, overrides, message):
    assert message in "\n".join(problems(write(tmp_path, "s.yaml", MINIMAL), *overrides))


def test_contradictions_are_reported_together(tmp_path):
    overrides = ["data.window.size_grid=100", "schedule.end_epoch=200", "model.backbone.heads=5"]
    assert len(problems(write(tmp_path, "s.yaml", MINIMAL), *overrides)) == 3


def test_overlays_lie_between_the_file_and_the_overrides(tiny_spec, tmp_path):
    for name, text in (("a", "train: {seed: 1, global_batch: 6}"), ("b", "train: {seed: 2, accumulation: 3}")):
        (tmp_path / f"{name}.yaml").write_text(text)
    overlays = [tmp_path / "a.yaml", tmp_path / "b.yaml"]
    spec, document = load_with_sources(tiny_spec, ["train.accumulation=2"], overlays=overlays)
    assert (spec.train.seed, spec.train.global_batch, spec.train.accumulation) == (2, 6, 2)
    assert spec.name == "tiny"
    assert document.source(("train", "seed")) == f"{tmp_path}/b.yaml:1"
    with pytest.raises(SpecError, match=r"c\.yaml: no such file"):
        load(tiny_spec, overlays=[tmp_path / "c.yaml"])


@pytest.mark.parametrize("path", sorted((ROOT / "slurm" / "nodes").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_overlays_of_clusters_fit_the_published_rows(path):
    plain = load(ROOT / "configs" / "thumos" / "g_1536x224_adapter.yaml", check_files=False)
    spec = load(ROOT / "configs" / "thumos" / "g_1536x224_adapter.yaml", check_files=False, overlays=[path])
    assert spec.memory.policy == "tile"
    assert spec.parallel.engine != "auto"
    assert (spec.model, spec.data) == (plain.model, plain.data)
