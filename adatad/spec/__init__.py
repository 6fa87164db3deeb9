"""The experiment file: typed sections, YAML loading, inheritance, overrides, error messages. Imports no torch."""

from adatad.spec.arguments import (
    add_device_argument,
    add_engine_arguments,
    add_spec_arguments,
    overrides_from,
    spec_from_arguments,
    spec_path,
)
from adatad.spec.dump import to_yaml
from adatad.spec.explain import explain_key
from adatad.spec.load import SpecError, load
from adatad.spec.schema import Spec

__all__ = [
    "Spec",
    "SpecError",
    "add_device_argument",
    "add_engine_arguments",
    "add_spec_arguments",
    "explain_key",
    "load",
    "overrides_from",
    "spec_from_arguments",
    "spec_path",
    "to_yaml",
]
