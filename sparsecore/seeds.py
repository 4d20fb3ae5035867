"""Random generators, a fresh one for each (seed, purpose, rank, epoch).

So a run that resumes at an epoch draws the same numbers as an uninterrupted run.
"""

from enum import IntEnum

import numpy as np


class Purpose(IntEnum):
    """Purposes of random numbers; changing a value changes every seeded result."""

    TOPOLOGY = 0
    WEIGHTS = 1
    SHUFFLE = 2
    EVOLUTION = 3
    DROPOUT = 4
    SPLIT = 5
    SAMPLES = 6


def generator(seed: int, purpose: Purpose, rank: int = 0, epoch: int = 0) -> np.random.Generator:
    """Return a fresh Generator of one purpose, rank and epoch."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(purpose, rank, epoch)))


def key(seed: int, purpose: Purpose, rank: int = 0) -> np.uint64:
    """Return a 64-bit key for counter-based noise."""
    sequence = generator(seed, purpose, rank).bit_generator.seed_seq
    return sequence.generate_state(1, np.uint64)[0]
