"""The hyperparameters of a network and its training, checked when they are set.

Each stands here once, with default, range, help and label. From `HYPERPARAMETERS` the command line,
the estimator and the book's table take what they say of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, NamedTuple

import numpy as np

from sparsecore.functions import ACTIVATIONS, INITIALIZERS


class Range(NamedTuple):
    """The values that a hyperparameter may have."""

    kind: type  #: of the values
    expected: str  #: what an error says was expected
    holds: Callable[[Any], bool]


def _numbers(expected: str, holds: Callable[[Any], bool]) -> Range:
    numbers = (int, float, np.number)
    return Range(
        float, expected, lambda v: isinstance(v, numbers) and bool(np.isfinite(v)) and holds(v)
    )


def _is_integer(value: Any, least: int) -> bool:
    integer = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    return integer and value >= least


def _integers(least: int, expected: str = "an integer of at least {}") -> Range:
    return Range(int, expected.format(least), lambda v: _is_integer(v, least))


def _names(table: dict[str, Any]) -> Range:
    return Range(str, f"one of {', '.join(table)}", lambda v: isinstance(v, str) and v in table)


_POSITIVE = _numbers("a positive number", lambda v: v > 0)
_FRACTION = _numbers("a number in [0, 1)", lambda v: 0 <= v < 1)
_WIDTHS = Range(
    tuple,
    "integers of at least 1",
    lambda v: bool(np.iterable(v)) and all(_is_integer(n, 1) for n in v),
)


@dataclass(frozen=True)
class Hyperparameter:
    """What is to be known of a hyperparameter beside its default.

    `help` says what it is, without its range; `label` names it in a table; `metavar` stands for a
    value on the command line. One whose default is None may be left out.
    """

    name: str
    default: Any
    range: Range
    help: str
    label: str
    metavar: str | None

    def check(self, value: Any, name: str | None = None) -> None:
        """Raise ValueError if a value is out of range; `name` is what the caller calls it."""
        if (value is None and self.default is None) or self.range.holds(value):
            return
        raise ValueError(f"{name or self.name}: expected {self.range.expected}, got {value!r}")


def _field(
    default: Any, values: Range, about: str, label: str = "", metavar: str | None = None
) -> Any:
    known = {"range": values, "help": about, "label": label, "metavar": metavar}
    return field(default=default, metadata=known)


@dataclass(frozen=True)
class TrainConfig:
    """Hyperparameters of a network and its training; the defaults are the study's Fashion-MNIST.

    Parameters
    ----------
    {parameters}

    Raises
    ------
    ValueError
        If a value is out of its range; the message names it.
    """

    hidden: tuple[int, ...] = _field(
        (1000, 1000, 1000), _WIDTHS, "neurons of the hidden layers", "hidden layers", "N,N,…"
    )
    epsilon: float = _field(
        20.0, _POSITIVE, "density, about ε (n_in + n_out) connections per layer", "ε"
    )
    density: float | None = _field(
        None,
        _numbers("a number in (0, 1]", lambda v: 0 < v <= 1),
        "connection probability instead of epsilon",
    )
    activation: str = _field("all-relu", _names(ACTIVATIONS), "of the hidden layers")
    alpha: float = _field(
        0.6,
        _numbers("a finite number", lambda v: True),
        "negative slope of All-ReLU and LeakyReLU",
        "α",
    )
    init: str = _field("he_uniform", _names(INITIALIZERS), "distribution of new weights", "init")
    learning_rate: float = _field(0.01, _POSITIVE, "step size η", "η", "ETA")
    momentum: float = _field(0.9, _FRACTION, "share of the velocity kept", "momentum μ", "MU")
    weight_decay: float = _field(
        0.0002, _FRACTION, "decoupled, per step", "weight decay λ, per step", "LAMBDA"
    )
    dropout: float = _field(
        0.3, _FRACTION, "share of hidden activations dropped", "dropout", "RATE"
    )
    zeta: float = _field(
        0.3,
        _FRACTION,
        "fraction of connections replaced after each epoch (0 keeps the topology)",
        "connections replaced after each epoch ζ",
    )
    batch_size: int = _field(128, _integers(1), "samples per step", "batch", "N")
    epochs: int = _field(500, _integers(0), "passes over the training data", "epochs", "N")
    prune_from: int | None = _field(
        None,
        _integers(1, "an epoch of at least {}, or None"),
        "prune by neuron importance from this epoch on",
        "importance pruning from epoch",
        "EPOCH",
    )
    prune_every: int = _field(
        10, _integers(1), "epochs between prunings", "then every … epochs", "EPOCHS"
    )
    prune_percentile: float = _field(
        20.0,
        _numbers("a number in [0, 100]", lambda v: 0 <= v <= 100),
        "percentile of importance that is pruned",
        "pruned up to this percentile of importance",
        "P",
    )
    augment: bool = _field(
        False,
        Range(bool, "True or False", lambda v: isinstance(v, bool)),
        "shift, rotate and flip images",
    )

    def __post_init__(self) -> None:
        """Check every value."""
        for name, value in vars(self).items():
            if isinstance(value, np.generic):  # JSON does not know NumPy's numbers
                object.__setattr__(self, name, value.item())
        for name, about in HYPERPARAMETERS.items():
            about.check(getattr(self, name))
        object.__setattr__(self, "hidden", tuple(map(int, self.hidden)))

    def to_dict(self) -> dict[str, Any]:
        """Return the values as plain JSON types."""
        return {**asdict(self), "hidden": list(self.hidden)}

    def with_values(self, **changes: Any) -> TrainConfig:
        """Return a copy with some values changed, checked again."""
        return replace(self, **changes)

    def prunes_after(self, epoch: int) -> bool:
        """Tell whether importance pruning is due after `epoch` (counted from 1)."""
        if self.prune_from is None or epoch < self.prune_from or epoch >= self.epochs:
            return False
        return (epoch - self.prune_from) % self.prune_every == 0


HYPERPARAMETERS: dict[str, Hyperparameter] = {
    f.name: Hyperparameter(f.name, f.default, **f.metadata) for f in fields(TrainConfig)
}

TrainConfig.__doc__ = (TrainConfig.__doc__ or "").replace(
    "{parameters}",
    "\n    ".join(
        f"{f.name} : {f.type}, default={f.default!r}\n"
        f"        {about.help[0].upper()}{about.help[1:]}, {about.range.expected}."
        for f, about in zip(fields(TrainConfig), HYPERPARAMETERS.values(), strict=True)
    ),
)
