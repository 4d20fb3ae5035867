"""The reference: what it lists exists, is documented in full, and its examples run."""

import doctest
import importlib
import inspect
import re
from functools import cached_property
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "book/api.md").read_text()
LISTED = re.findall(r"auto\w+:: (\S+)(?:\n   :members: (.+))?", PAGE)
LIBRARY = [
    path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".").removesuffix(".__init__")
    for path in sorted((ROOT / "sparsecore").rglob("*.py"))
    if "paper" not in path.parts and "commands" not in path.parts and ">>>" in path.read_text()
]
# What is said once in a class's docstring; scikit-learn's users know X and y.
ELSEWHERE = {"self", "cls", "X", "y"}


def found(name):
    module, _, attribute = name.rpartition(".")
    return getattr(importlib.import_module(module), attribute)


def documented():
    for name, members in LISTED:
        yield name, found(name)
        for member in filter(None, re.split(r",\s*", members)):
            yield f"{name}.{member}", inspect.getattr_static(found(name), member)


def test_everything_listed_is_documented():
    missing = []
    for name, thing in documented():
        text = inspect.getdoc(getattr(thing, "__func__", thing)) or ""
        called = inspect.isroutine(thing) and not isinstance(thing, cached_property)
        if not text or not called or name.split(".")[-1][0].isupper():
            missing += [] if text else [name]
            continue
        for parameter in inspect.signature(thing).parameters:
            if parameter not in ELSEWHERE and not re.search(rf"\b{parameter}\b", text):
                missing.append(f"{name}: {parameter}")
    assert not missing


@pytest.mark.parametrize(
    "name",
    ["SparseMLPClassifier", "SparseMLPRegressor", "config.TrainConfig", "wasap.Plan",
     "extreme.config.ExtremeConfig"],
)  # fmt: skip
def test_docstrings_that_are_put_together_have_their_sections(name):
    text = inspect.getdoc(found(f"sparsecore.{name}"))  # Python 3.13 has no indentation in them
    assert "\nParameters\n----------\n" in text
    assert ("\n\nRaises\n------\nValueError\n    " in text) == ("." in name)
    assert "{" not in text and not re.search(r"^ +-+$", text, re.MULTILINE)


def test_the_package_offers_what_is_listed():
    package = importlib.import_module("sparsecore")
    public = {name for name in package.__all__ if name[0] != "_"}
    assert public <= {*dir(package)}, "they are loaded on first use"
    assert {f"sparsecore.{name}" for name in public} <= {name for name, _ in LISTED}


@pytest.mark.parametrize("module", LIBRARY)
def test_examples_of_the_docstrings(module):
    result = doctest.testmod(importlib.import_module(module))
    assert result.attempted > 0 and result.failed == 0


def test_the_glossary_has_the_designs_names():
    glossary = (ROOT / "book/glossary.md").read_text()
    terms = set(re.findall(r"^(\S.*)\n  \S", glossary, re.MULTILINE))
    names = {"fan_in", "nnz", "velocity", "epsilon", "zeta", "alpha", "staleness", "n_workers",
             "random_state", "CSR", "WASAP-SGD", "WASSP-SGD", "SET", "All-ReLU"}  # fmt: skip
    assert names <= terms
    for term in re.findall(r"\{term\}`(?:[^`<]+<)?([^`>]+)>?`", glossary):
        assert term in terms, term
