"""data.root: one folder for the paths of a data set."""

import pytest

from adatad.spec import SpecError, load, to_yaml

TEXT = (
    "data: {annotations: a.json, videos: v, classes: c.txt, blocked_videos: b.txt}\nmodel: {backbone: {mode: frozen}}\n"
)


@pytest.fixture
def spec_file(tmp_path):
    path = tmp_path / "s.yaml"
    path.write_text(TEXT)
    return path


def paths(spec):
    return spec.data.annotations, spec.data.videos, spec.data.classes, spec.data.blocked_videos


def test_relative_paths_start_from_it_and_absolute_ones_stay(spec_file):
    spec = load(spec_file, ["data.root=some/folder", "data.videos=/elsewhere/v"], check_files=False)
    assert paths(spec) == ("some/folder/a.json", "/elsewhere/v", "some/folder/c.txt", "some/folder/b.txt")


def test_without_it_paths_are_as_written(spec_file):
    assert paths(load(spec_file, check_files=False)) == ("a.json", "v", "c.txt", "b.txt")


@pytest.mark.parametrize("classes", ["[a, b]", "null"])
def test_classes_that_are_no_file_stay(spec_file, classes):
    written = load(spec_file, [f"data.classes={classes}"], check_files=False)
    rooted = load(spec_file, ["data.root=r", f"data.classes={classes}"], check_files=False)
    assert rooted.data.classes == written.data.classes != "c.txt"


def test_a_saved_spec_loads_back_to_itself(spec_file, tmp_path):
    """A relative root must not be put in front twice."""
    spec = load(spec_file, ["data.root=r"], check_files=False)
    again = tmp_path / "again.yaml"
    again.write_text(to_yaml(spec))
    assert load(again, ["name=s"], check_files=False) == spec


def test_files_are_looked_for_under_it(spec_file, tmp_path):
    root = tmp_path / "root"
    (root / "v").mkdir(parents=True)
    for name in ("a.json", "c.txt", "b.txt"):
        (root / name).touch()
    assert load(spec_file, [f"data.root={root}"]).data.videos == str(root / "v")
    (root / "a.json").unlink()
    with pytest.raises(SpecError, match=f"data.annotations: there is no file {root}/a.json") as caught:
        load(spec_file, [f"data.root={root}"])
    assert len(caught.value.problems) == 1


def test_nothing_is_concluded_from_a_wrong_one(spec_file):
    with pytest.raises(SpecError, match=r"data\.root: ") as caught:
        load(spec_file, ["data.root=[3]"])
    assert len(caught.value.problems) == 1
