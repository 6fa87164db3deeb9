"""The width of a model's input where that is features: as the files of `data.features` have it."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from adatad.files import FileError, read_json
from adatad.spec.schema import Spec

FEATURES = "adatad features"
"""Key under which JSON files of `adatad extract` hold their facts, and by which they are known."""


def with_feature_width(spec: Spec) -> Spec:
    """Return the spec with `model.backbone.width` filled in from the first file of features; as it is where it has a
    width, or where no file says one.

    When a spec is loaded: the model that it describes then needs no files to be built again.
    """
    backbone = spec.model.backbone
    if backbone.mode != "features" or backbone.width is not None or spec.data.features is None:
        return spec
    for path in sorted(Path(spec.data.features).glob("*.json")):
        # Files that aren't ours say nothing here, and damaged ones are reported when they are read.
        with suppress(FileError, KeyError, TypeError):
            width = read_json(path)[FEATURES]["channels"]
            if type(width) is int and 0 < width < 1 << 20:
                found = backbone.model_copy(update={"width": width})
                return spec.model_copy(update={"model": spec.model.model_copy(update={"backbone": found})})
    return spec
