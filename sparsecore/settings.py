"""The hyperparameters of the study, per data set, and where each value comes from."""

from dataclasses import dataclass
from functools import cached_property

from sparsecore.config import TrainConfig, names

RELEASED = "released code"
READING = "this project's reading"
CHOICE = "this project's choice"

# Origins in more detail, where the released code has several values.
_DETAILS = {
    "weight_decay": "released code: 0.0002 sequential, 0 parallel; both here",
    "prune_from": "released code; its first pruning comes after 211 epochs, parallel 220",
    "prune_every": "released sequential script, which is for Fashion-MNIST",
    "prune_percentile": "released sequential script, which is for Fashion-MNIST",
}

#: Weight decay is a factor of the study: the value of the released sequential script, and that of
#: all released parallel code.
DECAYS = (0.0002, 0.0)


@dataclass(frozen=True)
class Setting:
    """A data set's configuration, and which of its values are from the authors' released code."""

    config: TrainConfig
    released: frozenset[str]  #: fields of `config`; none if the data set is not in the study
    #: Of `default`: 0 where held-out rows favour it; without any, where all released code has it.
    decay: float = DECAYS[0]

    @cached_property
    def default(self) -> TrainConfig:
        """The defaults of the command `train`: `config`, with `decay` as weight decay."""
        return self.config.with_values(weight_decay=self.decay)

    def origin(self, field: str) -> str:
        """Return where the value of a field of `config` comes from."""
        if not self.released:
            return CHOICE
        origin = RELEASED if field in self.released else READING
        return _DETAILS.get(field, origin)


# In the released code for every data set.
_COMMON = frozenset("momentum dropout zeta prune_from prune_every prune_percentile".split())
_ALL = _COMMON | {"hidden", "epsilon", "activation", "alpha", "learning_rate", "batch_size", "init"}
_MADELON = TrainConfig(hidden=(400, 100, 400), epsilon=10, alpha=0.5, init="normal", batch_size=32)
_LEUKEMIA = TrainConfig(
    hidden=(27500, 27500), epsilon=10, alpha=0.75, learning_rate=0.005, init="normal", batch_size=5
)

SETTINGS: dict[str, Setting] = {
    "fashion-mnist": Setting(TrainConfig(), _ALL, decay=0.0),
    "cifar10": Setting(TrainConfig(hidden=(4000, 1000, 4000), alpha=0.75, augment=True), _ALL, 0.0),
    "madelon": Setting(_MADELON, _COMMON | {"hidden"}),
    "higgs": Setting(TrainConfig(epsilon=10, alpha=0.05, init="xavier"), _COMMON),
    "leukemia": Setting(_LEUKEMIA, _COMMON),
    # Not in the study: small data sets that are always available.
    "digits": Setting(TrainConfig(hidden=(200, 200, 200), epsilon=10, batch_size=32), frozenset()),
    "madelon-generator": Setting(_MADELON, frozenset()),
    "artificial": Setting(TrainConfig(epsilon=10), frozenset()),
}


def setting(dataset: str) -> Setting:
    """Return the study's setting for a data set.

    Parameters
    ----------
    dataset : str
        One of `datasets.names()`; any other name raises ValueError.

    Returns
    -------
    Setting
        `config`, a TrainConfig; `released`, its fields with values from the released code;
        `default`, the configuration that the command `train` uses: its weight decay may differ.
    """
    return SETTINGS[names(SETTINGS).check("dataset", dataset)]
