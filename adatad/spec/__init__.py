"""The experiment file: typed sections, YAML loading, inheritance, overrides, error messages. Imports no torch."""

from adatad.spec.key_help import explain_key
from adatad.spec.load import SpecError, load
from adatad.spec.schema import Select, Spec
from adatad.spec.write import to_yaml

__all__ = ["Select", "Spec", "SpecError", "explain_key", "load", "to_yaml"]
