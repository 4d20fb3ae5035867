"""What all tests share: settings that come before any import, or are the same for all."""

from __future__ import annotations

import os

# SciPy reads it when it is first imported; scikit-learn's check of array API input is skipped
# without.
os.environ["SCIPY_ARRAY_API"] = "1"

import hypothesis

hypothesis.settings.register_profile(
    # Examples are the same in every run, so a failure repeats. A deadline would measure compilation
    # and the neighbours' load, not the code.
    "repeatable",
    derandomize=True,
    deadline=None,
    max_examples=100,
)
hypothesis.settings.load_profile("repeatable")

# Files are handed to workers whole and in this order: what compiles for all, then what waits for
# other processes. The short rest fills both workers to the end.
_FIRST = ("test_golden.py", "test_kernels.py", "test_wasap.py", "test_cluster.py")


def pytest_collection_modifyitems(items):
    order = {name: place for place, name in enumerate(_FIRST)}
    items.sort(key=lambda item: order.get(item.path.name, len(order)))
