"""Names and paths of a spec: ~ and variables, names that are no folder's, patterns, where a file was looked for."""

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adatad.spec import SpecError, load, to_yaml
from adatad.spec.keys import all_keys
from adatad.spec.schema import PATHS, STAGE_TO
from adatad.spec.text import as_written, expand, fill, pattern_problem

TEXT = "data: {annotations: a.json, videos: v}\nmodel: {backbone: {mode: frozen}}\n"


@pytest.fixture
def spec_file(tmp_path) -> Path:
    path = tmp_path / "s.yaml"
    path.write_text(TEXT)
    return path


def problems(path: Path, *overrides: str, check_files: bool = False) -> list[str]:
    with pytest.raises(SpecError) as caught:
        load(path, overrides, check_files)
    return caught.value.problems


def value_at(spec, key):
    for part in key:
        spec = getattr(spec, part)
    return spec


CLASSIFIER = "postprocess.classifier={kind: cuhk, file: x}"
NEEDED = {
    "data.features": ["model.backbone.mode=features"],
    "parallel.deepspeed": ["parallel.engine=zero3"],
    "postprocess.classifier.file": [CLASSIFIER, "model.detector.class_agnostic=true"],
}


@pytest.mark.parametrize("key", PATHS, ids=".".join)
def test_home_and_variables_are_filled_in_once_in_every_path(spec_file, tmp_path, monkeypatch, key):
    monkeypatch.setenv("HOME", "/home/$me")
    monkeypatch.setenv("DISK", "/di$k")
    name = ".".join(key)
    for text, expected in (
        ("~/x", "/home/$me/x"), ("$DISK/x", "/di$k/x"), ("${DISK}x/y", "/di$kx/y"), ("a$$b", "a$b"),
        ("a~", "a~"), ("cost$", "cost$"), ("./~", "./~"),
    ):  # fmt: skip
        spec = load(spec_file, [*NEEDED.get(name, []), f"{name}={text}"], check_files=False)
        if key == ("data", "root"):
            assert spec.data.annotations == f"{expected}/a.json"
        else:
            assert value_at(spec, key) == expected
        again = tmp_path / "again.yaml"
        again.write_text(to_yaml(spec))
        assert load(again, ["name=s"], check_files=False) == spec
    [line] = problems(spec_file, *NEEDED.get(name, []), f"{name}=$NOWHERE/x")
    assert f": {name}: the variable $NOWHERE isn't set; set it" in line
    [line] = problems(spec_file, *NEEDED.get(name, []), f"{name}=~no-such-user/x")
    assert f": {name}: ~no-such-user is no user's home here" in line


def test_the_paths_are_all_that_a_spec_has():
    words = {"annotations", "classes", "blocked_videos", "videos", "root", "weights", "deepspeed", "file", "stage_to",
             "init_from", "features"}  # fmt: skip
    paths = {key for key in all_keys() if key.rpartition(".")[2] in words}
    assert paths == {".".join(key) for key in (*PATHS, STAGE_TO)}


def test_the_folder_of_copies_is_left_to_the_machine_that_has_it(spec_file):
    assert load(spec_file, ["data.stage_to=$NODE_DISK/v"], check_files=False).data.stage_to == "$NODE_DISK/v"


def test_other_text_is_as_written(spec_file):
    spec = load(spec_file, ['data.classes=["$A", "~"]', 'data.train_subset="$A"', "name=$A"], check_files=False)
    assert (spec.data.classes, spec.data.train_subset, spec.name) == (("$A", "~"), "$A", "$A")


def test_base_files_are_found_by_home_and_variables(spec_file, tmp_path, monkeypatch):
    (tmp_path / "base.yaml").write_text("train: {seed: 7}\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("BASES", str(tmp_path))
    for base in ("~/base.yaml", "$BASES/base.yaml", "${BASES}/base.yaml"):
        spec_file.write_text(f"base: {base}\n{TEXT}")
        assert load(spec_file, check_files=False).train.seed == 7


@given(st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1))
def test_what_is_written_is_what_is_read(path):
    assert expand(as_written(path)) in (path, f"./{path}")


names = st.text(st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"]), min_size=1, max_size=20)


@settings(max_examples=20)
@given(names, st.lists(names, min_size=1, max_size=3, unique=True))
def test_any_text_comes_back_from_a_saved_spec(subset, classes):
    folder = Path(os.environ["PYTEST_TMP"])
    (folder / "s.yaml").write_text(TEXT)
    spec = load(folder / "s.yaml", check_files=False)
    spec = spec.model_copy(update={"data": spec.data.model_copy(update={
        "train_subset": subset, "classes": tuple(classes), "annotations": subset.replace("~", "x")})})  # fmt: skip
    (folder / "again.yaml").write_text(to_yaml(spec), encoding="utf-8")
    assert load(folder / "again.yaml", check_files=False) == spec


@pytest.fixture(autouse=True)
def folder_for_hypothesis(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("PYTEST_TMP", str(tmp_path_factory.mktemp("saved")))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ('""', "isn't a folder below run.root"),
        (".", "isn't a folder below run.root"),
        ("..", "isn't a folder below run.root"),
        ("../../x", "isn't a folder below run.root"),
        ("a/../../x", "isn't a folder below run.root"),
        ("/home/me/thesis", "isn't a folder below run.root"),
        ("a/", "isn't a folder below run.root"),
        ('" "', "isn't a folder below run.root"),
        ("x" * 256, "is too long"),
        ("é" * 128, "is too long"),
        ("a/" * 900 + "a", "is too long"),
        ("a\u202eb", "can't be seen"),
        ('"a\\nb"', "holds a line break"),
        ('"a\\u2028b"', "holds a line break"),
        ('"a\\x7fb"', "holds the control character"),
        ("null", "valid string"),
        ("[a]", "valid string"),
    ],
    ids=lambda text: text[:20],
)
def test_names_that_are_no_folder_below_the_root_are_refused(spec_file, name, said):
    [line] = problems(spec_file, f"name={name}")
    assert said in line
    assert line.isprintable()
    if name.startswith('"'):
        spec_file.write_text(f"{TEXT}name: {name}\n")
        [line] = problems(spec_file)
        assert f"{spec_file}:3: name: " in line


@pytest.mark.parametrize("name", ["demo/tia", "a b;c", "$(touch x)", "a`b", "-x", "…", "名前", "a..b", "%j"])
def test_other_names_are_names(spec_file, name):
    assert load(spec_file, [f'name="{name}"'], check_files=False).name == name


def test_the_name_of_a_file_that_is_no_name_is_refused_with_the_file(tmp_path):
    path = tmp_path / "a\nb.yaml"
    path.write_text(TEXT)
    [line] = problems(path)
    assert line.endswith("a\\nb.yaml: name: holds a line break (\\n); expected words, / and -")


@pytest.mark.parametrize("path", ["x" * 256, "x/" * 2000], ids=["a long part", "a long path"])
def test_paths_that_no_disk_takes_are_refused(spec_file, path):
    for key in ("run.root", "data.videos", "data.annotations", "data.stage_to"):
        [line] = problems(spec_file, f"{key}={path}")
        assert f": {key}: " in line
        assert "bytes" in line
    for key in ("run.root", "data.videos", "data.annotations"):
        assert f"{key}: is empty; expected a path" in problems(spec_file, f'{key}=""')[0]


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        ("x.mp4", "doesn't hold {name}"),
        ("{name}{name}.mp4", "holds {name} 2 times"),
        ("{name}{x}", "holds {x}"),
        ("{name}{0}", "holds {0}"),
        ("{name}}", "holds }"),
        ("{{name}}", "holds {"),
        ("{name}{}", "holds {}"),
        ("{name!r}{name}", "holds {name!r}"),
        ("{name}_{start}_{end}.mp4", "holds {start}; expected {name} once, and nothing else in braces"),
        ("../{name}.mp4", "leaves data.videos"),
        ("/v/{name}.mp4", "leaves data.videos"),
        ("{name}/../../x", "leaves data.videos"),
        ("{name}" + "x" * 300, "more than 255 bytes"),
    ],
)
def test_a_pattern_holds_the_name_once_and_nothing_else(tmp_path, pattern, said):
    assert said in pattern_problem(pattern)
    path = tmp_path / "s.yaml"
    path.write_text(TEXT.replace("videos: v", f'videos: v, pattern: "{pattern}"'))
    [line] = problems(path)
    assert line.startswith(f"{path}:1: data.pattern: ")
    assert said in line


@pytest.mark.parametrize("name", ["a", "{name}", "{", "{0}", "%s", "\\1", "$HOME", "a/b", "é"])
def test_any_name_fits_a_pattern(name):
    for pattern in ("{name}.mp4", "v_{name}.mp4", "a/{name}", "%s{name}$"):
        assert pattern_problem(pattern) is None
        start, end = pattern.split("{name}")
        assert fill(pattern, name) == start + name + end


def test_missing_files_say_where_they_were_looked_for(spec_file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert problems(spec_file, check_files=True) == [
        f"{spec_file}:1: data.annotations: there is no file a.json in {tmp_path}",
        f"{spec_file}:1: data.videos: there is no folder v in {tmp_path}",
    ]
    (tmp_path / "a.json").mkdir()
    (tmp_path / "v").touch()
    assert problems(spec_file, check_files=True) == [
        f"{spec_file}:1: data.annotations: a.json is a folder; name the file in it",
        f"{spec_file}:1: data.videos: is a file, not a folder: v in {tmp_path}",
    ]
    assert problems(spec_file, "data.annotations=/dev/null", "data.videos=.", check_files=True) == [
        "--set data.annotations=/dev/null: data.annotations: /dev/null is no regular file; name one"
    ]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("configs/demo/tai.yaml", "configs/demo/tai.yaml: no such file; did you mean configs/demo/tia.yaml?"),
        ("configs/demo/tia", "configs/demo/tia: no such file; did you mean configs/demo/tia.yaml?"),
        ("thumos-s-769", "thumos-s-769: no such file, and no published experiment has this name"),
        ("s-768", "could be activitynet/s_768x160_adapter, "),
        ("", "'': expected the name of a spec file"),
        ("nowhere/x.yaml", "nowhere/x.yaml: no such file in "),
        ("a\0b", "a\\x00b: no such file"),
        ("x" * 300, "no such file"),
        ("configs/adatad/thumos/e2e_thumos_x.py", "unknown configuration of OpenTAD's configs/adatad"),
    ],
)
def test_a_spec_that_is_not_there(given, said):
    [line] = problems(Path(given) if given else "")
    assert said in line


def test_a_run_directory_is_answered_with_the_spec_in_it(tmp_path):
    (tmp_path / "spec.yaml").write_text(TEXT)
    assert problems(tmp_path) == [f"{tmp_path}: is a folder; did you mean {tmp_path}/spec.yaml?"]


@pytest.mark.parametrize(
    "override",
    [
        "model.backbone.mlp_ratio=1e308", "model.backbone.adapter.ratio=1e308", "model.backbone.width=10000000000",
        "model.backbone.depth=100000", "model.detector.branch_blocks=1000000", "data.fps=1e308", "data.fps=1e-300",
        "data.window.size_grid=1000000000", "run.id=1000000000000", "train.seed=9223372036854775808",
        "train.hang_seconds=1e300", "data.decode_timeout_seconds=1e10", "optimizer.lr=1e300", "schedule.epochs=1e18",
        "memory.host_limit_gib=1e300", "postprocess.nms.sigma=1e308", "parallel.clip=0",
        "published={average_mAP: 1e308}", "model.detector.attention_window=10000000000",
    ],
)  # fmt: skip
def test_numbers_that_later_arithmetic_cannot_take_are_refused(spec_file, override):
    key = override.partition("=")[0]
    assert any(line.startswith(f"--set {override}: {key}") for line in problems(spec_file, override))


@pytest.mark.parametrize(
    "overrides",
    [
        ["data.window.size_grid=1000000", "data.size_pixels=1000000"],
        ["model.backbone.width=1000000", "model.backbone.depth=1000", "model.backbone.heads=1"],
        ["model.detector.width=1000000", "model.detector.stem_blocks=1000"],
    ],
)
def test_sizes_that_no_machine_has_are_refused(spec_file, overrides):
    assert any("take fewer" in line or "parameters; at most" in line for line in problems(spec_file, *overrides))
