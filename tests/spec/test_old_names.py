"""Names of keys and values that earlier versions had: they load, and compare equal to those of today."""

from pathlib import Path

import pytest

from adatad.spec import SpecError, load, to_yaml
from adatad.training.resume import spec_changes

MINIMAL = "data: {annotations: a.json, videos: v}\noptimizer: {backbone: {custom: [{name: adapter, lr: 1e-4}]}}\n"
OLD_NAMES = "compat: mended\nmemory: {policy: tile, rows: host, row_dtype: fp8, recompute: rebuild}\n"
"""Keys and values as earlier versions called them."""


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_names_of_earlier_versions_load_with_one_warning_line(tmp_path, capsys):
    path = write(tmp_path, "old.yaml", MINIMAL + OLD_NAMES)
    spec = load(path, ["memory.rows=device", "memory.recompute=hold"], check_files=False)
    assert (spec.compat, spec.memory.saved_inputs, spec.memory.saved_input_dtype) == ("fixed", "device", "fp8")
    assert spec.memory.recompute == "once"
    (line,) = capsys.readouterr().err.splitlines()
    for name in ("memory.saved_inputs", "memory.saved_input_dtype", "recompute: hold is once", "fixed"):
        assert name in line
    assert load(write(tmp_path, "new.yaml", to_yaml(spec)), check_files=False) == spec
    assert not capsys.readouterr().err


def test_a_saved_spec_with_names_of_earlier_versions_compares_equal(tmp_path):
    settings = ["memory.policy=tile", "memory.saved_inputs=host", "memory.recompute=twice"]
    text = to_yaml(load(write(tmp_path, "new.yaml", MINIMAL), settings, check_files=False))
    old = text.replace("saved_inputs", "rows").replace("recompute: twice", "recompute: rebuild")
    old = old.replace("saved_input_dtype", "row_dtype").replace("compat: fixed", "compat: mended")
    assert old != text
    assert spec_changes(old, text) == []


def test_an_old_and_a_new_name_of_one_key_are_refused(tmp_path):
    path = write(tmp_path, "both.yaml", MINIMAL + "memory: {rows: host, saved_inputs: device}\n")
    with pytest.raises(SpecError, match=r"memory\.rows"):
        load(path, check_files=False)
