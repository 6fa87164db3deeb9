"""The experiment file: typed sections, YAML loading, inheritance, overrides, error messages. Imports no torch."""

from adatad.spec.explain import explain_key
from adatad.spec.load import SpecError, load, to_yaml
from adatad.spec.schema import Spec

__all__ = ["Spec", "SpecError", "explain_key", "load", "to_yaml"]
