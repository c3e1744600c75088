"""The list of families and what each declares."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import fields

import pytest

from gprune import UnsupportedModelError
from gprune.layouts import (
    FAMILIES,
    Family,
    families,
    families_with,
    family_of,
    family_of_architecture,
)

CAPABILITIES = ["prunes_in_decoder", "takes_weights", "takes_smaller_images", "served"]


def test_names_and_classes_are_unique() -> None:
    assert len(families()) == len(FAMILIES)
    architectures = [name for family in FAMILIES for name in family.architectures]
    assert len(set(architectures)) == len(architectures)
    assert all(family.tier in (1, 2, 3) for family in FAMILIES)


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_capabilities_are_off_by_default(capability: str) -> None:
    (field,) = [field for field in fields(Family) if field.name == capability]
    assert field.default is False
    names = families_with(capability)
    assert names == [family.name for family in FAMILIES if getattr(family, capability)]
    assert 0 < len(names) < len(FAMILIES)


def test_experimental_families_declare_no_capability() -> None:
    for family in FAMILIES:
        if family.tier == 3:
            assert not any(getattr(family, capability) for capability in CAPABILITIES)


def test_a_subclass_belongs_to_the_family_of_its_base() -> None:
    base = type("LlavaForConditionalGeneration", (), {})
    assert family_of(type("Mine", (base,), {})()).name == "llava"
    assert family_of_architecture("Mine", "LlavaForConditionalGeneration").name == "llava"


def test_an_unknown_class_is_refused_by_name() -> None:
    with pytest.raises(UnsupportedModelError, match="Mine, which gprune cannot prune yet"):
        family_of_architecture("Mine")


def test_layouts_import_neither_engine() -> None:
    code = "import sys, gprune.layouts; sys.exit(bool({'transformers', 'vllm'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
