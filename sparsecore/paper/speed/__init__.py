"""Speed of a training step: the contest with the peers, the machine's ceilings."""
