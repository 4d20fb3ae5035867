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


def pytest_collection_modifyitems(config, items):
    """Leave fuzzing to those who ask for it."""
    if "fuzz" not in config.option.markexpr:
        chosen = [item for item in items if not item.get_closest_marker("fuzz")]
        config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
        items[:] = chosen
