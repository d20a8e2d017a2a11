"""The names that embedding programs use, and keep using after any submodule was imported."""

from __future__ import annotations

import importlib
import pkgutil

import pytest
import rollpoint


def test_public_names_are_functions_and_classes_and_stay_so() -> None:
    before = {name: getattr(rollpoint, name) for name in rollpoint.__all__}
    for module in pkgutil.walk_packages(rollpoint.__path__, "rollpoint."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    for name, value in before.items():
        assert callable(value), name
        assert getattr(rollpoint, name) is value, f"a submodule hides rollpoint.{name}"


def test_unknown_names_are_attribute_errors() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        rollpoint.nonsense  # noqa: B018
