"""What all tests share: Hypothesis draws the same examples in every run, so a failure repeats."""

from __future__ import annotations

import hypothesis

hypothesis.settings.register_profile(
    # A deadline would measure compilation and the neighbours' load, not the code.
    "repeatable",
    derandomize=True,
    deadline=None,
    max_examples=100,
)
hypothesis.settings.load_profile("repeatable")
