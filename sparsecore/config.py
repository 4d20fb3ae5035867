"""The hyperparameters of a network and its training, checked when they are set.

Each is declared once, in its configuration, with default, range, help and label. The command line,
the estimator and the book's table read them there.
"""

import inspect
import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from typing import Any, NamedTuple

import numpy as np

from sparsecore.functions import ACTIVATIONS, INITIALIZERS


class Range(NamedTuple):
    """The values that a hyperparameter may have."""

    kind: type  #: of the values
    expected: str  #: the values in words, for errors and help
    holds: Callable[[Any], bool]

    def check(self, name: str, value: Any) -> Any:
        """Return a value in the range; for another, raise ValueError that names `name`."""
        if not self.holds(value):
            raise ValueError(f"{name}: expected {self.expected}, got {value!r}")
        return value


LARGEST = float(np.finfo(np.float32).max)


def numbers(expected: str, holds: Callable[[Any], bool]) -> Range:
    """Return the range of the numbers that fit float32 and for which `holds` is true."""

    def inside(v: Any) -> bool:
        v = v.item() if isinstance(v, np.floating) else v  # float16 is compared as float16
        number = isinstance(v, (int, float, np.number)) and not isinstance(v, bool)
        return number and bool(abs(v) <= LARGEST) and bool(holds(v))

    return Range(float, expected, inside)


def integers(least: int, most: float = math.inf, expected: str = "") -> Range:
    """Return the range of integers from `least` on, or to `most`."""
    usual = f"of at least {least}" if most == math.inf else f"from {least} to {most}"

    def inside(v: Any) -> bool:
        whole = isinstance(v, (int, np.integer)) and not isinstance(v, bool)
        return whole and bool(least <= v <= most)

    return Range(int, expected or f"an integer {usual}", inside)


def names(table: Collection[str]) -> Range:
    """Return the range of the names in `table`."""
    return Range(str, f"one of {', '.join(table)}", lambda v: isinstance(v, str) and v in table)


POSITIVE = numbers("a positive number", lambda v: v > 0)
NOT_NEGATIVE = numbers("a number of at least 0", lambda v: v >= 0)
FRACTION = numbers("a number in [0, 1)", lambda v: 0 <= v < 1 and np.float32(v) < 1)
FINITE = numbers("a finite float32 number", lambda v: True)
FLAG = Range(bool, "True or False", lambda v: isinstance(v, (bool, np.bool_)))
_PROBABILITY = numbers("a number in (0, 1]", lambda v: 0 < v <= 1)
PERCENTILE = numbers("a number in [0, 100]", lambda v: 0 <= v <= 100)
_COUNT = integers(1)
_EPOCH = integers(1, expected="an epoch of at least 1, or None")
_WIDTHS = Range(  # no iterator: the check would exhaust it
    tuple, "integers of at least 1",
    lambda v: isinstance(v, (Sequence, np.ndarray)) and not isinstance(v, (str, bytes))
    and np.iterable(v) and all(map(_COUNT.holds, v)),
)  # fmt: skip


@dataclass(frozen=True)
class Hyperparameter:
    """A hyperparameter: its name, default, range and texts."""

    name: str
    default: Any  # None: optional
    range: Range
    help: str  # what it is, without its range
    label: str  # its name in a table
    metavar: str | None  # its value in `--help`

    def documented(self, default: Any) -> str:
        """Return its entry in the docstring of a class, with that class's `default`."""
        kind = self.range.kind.__name__ + " or None" * (default is None)
        kind += "" if default is MISSING else f", default={default!r}"
        about = f"{self.help[0].upper()}{self.help[1:]}: {self.range.expected}."
        return f"{self.name} : {kind}\n    {about}"

    def check(self, value: Any) -> None:
        """Raise ValueError if a value is out of range; None is valid if it is the default."""
        if value is not None or self.default is not None:
            self.range.check(self.name, value)


def param(
    default: Any, values: Range, about: str, label: str = "", metavar: str | None = None
) -> Any:
    """Declare a field of a configuration; a field whose default is MISSING is required."""
    known = {"range": values, "help": about, "label": label or about, "metavar": metavar}
    return field(default=default, metadata=known)


def hyperparameters(config: type) -> dict[str, Hyperparameter]:
    """Collect a configuration's hyperparameters, and list them in its docstring."""
    found = {f.name: Hyperparameter(f.name, f.default, **f.metadata) for f in fields(config)}
    listed = "\n".join(about.documented(about.default) for about in found.values())
    raised = "ValueError\n    If a value is out of its range; the message names it."
    text = f"Parameters\n----------\n{listed}\n\nRaises\n------\n{raised}"
    config.__doc__ = inspect.cleandoc(config.__doc__ or "").replace("{parameters}", text)
    return found


def check_values(config: Any, known: dict[str, Hyperparameter]) -> None:
    """Check a configuration's values; make NumPy numbers Python's, for JSON."""
    for name, about in known.items():
        if isinstance(value := getattr(config, name), np.generic):
            object.__setattr__(config, name, value := value.item())
        about.check(value)


@dataclass(frozen=True)
class TrainConfig:
    """Hyperparameters of a network and its training; defaults: the study's for Fashion-MNIST.

    {parameters}

    Examples
    --------
    >>> from sparsecore.config import TrainConfig
    >>> TrainConfig(hidden=(40, 30), epochs=2).with_values(zeta=0.5).zeta
    0.5
    >>> TrainConfig(zeta=1)
    Traceback (most recent call last):
    ValueError: zeta: expected a number in [0, 1), got 1
    """

    hidden: tuple[int, ...] = param(
        (1000, 1000, 1000), _WIDTHS, "neurons in each hidden layer", "hidden layers", "N,N,…"
    )
    epsilon: float = param(
        20.0, POSITIVE, "Erdős–Rényi ε: about ε (n_in + n_out) connections per layer", "ε"
    )
    density: float | None = param(None, _PROBABILITY, "connection probability instead of epsilon")
    activation: str = param("all-relu", names(ACTIVATIONS), "activation of the hidden layers")
    alpha: float = param(0.6, FINITE, "slope of All-ReLU and LeakyReLU for negative sums", "α")
    init: str = param("he_uniform", names(INITIALIZERS), "distribution of new weights", "init")
    learning_rate: float = param(0.01, POSITIVE, "step size η", "η", "ETA")
    momentum: float = param(0.9, FRACTION, "share of the velocity kept", "momentum μ", "MU")
    weight_decay: float = param(
        0.0002, FRACTION, "decoupled weight decay λ, per step", "weight decay λ, per step", "LAMBDA"
    )
    dropout: float = param(0.3, FRACTION, "share of hidden activations dropped", "dropout", "RATE")
    zeta: float = param(
        0.3, FRACTION, "fraction of connections replaced after each epoch but the last (0: none)",
        "connections replaced after each epoch ζ",
    )  # fmt: skip
    batch_size: int = param(128, _COUNT, "samples per step", "batch", "N")
    epochs: int = param(500, integers(0), "passes over the training data", "epochs", "N")
    prune_from: int | None = param(
        None, _EPOCH, "prune by neuron importance from this epoch on",
        "importance pruning from epoch", "EPOCH",
    )  # fmt: skip
    prune_every: int = param(10, _COUNT, "epochs between prunings", metavar="EPOCHS")
    prune_percentile: float = param(
        20.0, PERCENTILE, "hidden neurons up to this percentile of importance lose their inputs",
        "pruned up to this percentile of importance", "P",
    )  # fmt: skip
    prune_counts_empty: bool = param(
        False, FLAG, "count neurons without connections in the percentile, as in the released code"
    )
    augment: bool = param(False, FLAG, "shift, rotate and flip images")

    def __post_init__(self) -> None:
        """Check every value."""
        check_values(self, HYPERPARAMETERS)
        object.__setattr__(self, "hidden", tuple(map(int, self.hidden)))

    def to_dict(self) -> dict[str, Any]:
        """Return the values as plain JSON types."""
        values = {**asdict(self), "hidden": list(self.hidden)}
        if not self.prune_counts_empty:  # older results and checkpoints lack it
            del values["prune_counts_empty"]
        return values

    def with_values(self, **changes: Any) -> "TrainConfig":
        """Return a copy with the `changes`, by name; the values are checked again."""
        return replace(self, **changes)

    def prunes_after(self, epoch: int) -> bool:
        """Return whether importance pruning is due after `epoch` (counted from 1)."""
        return epoch in range(self.prune_from or self.epochs, self.epochs, self.prune_every)


HYPERPARAMETERS = hyperparameters(TrainConfig)
