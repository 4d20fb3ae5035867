"""Whether a team of threads pays, decided again and again while it works.

Another process may want a core, and then the team waits for the member that lost it. Or the cores
lie far apart, in a virtual machine from one minute to the next, and passing data between them costs
more than the help is worth. No rule tells beforehand, so it is measured.
"""

from __future__ import annotations

from collections import deque
from statistics import median

# Starting the members takes 0.2 ms, so turns are long; a trial of one member alone is shorter.
_TURN_SECONDS, _ALONE_SECONDS = 64e-3, 16e-3
_LAST = 5  # turns whose median is the pace: one that was interrupted does not count
# Turns between trials: at first, enough for a median that ignores a cold start; in the end, eight
# seconds.
_FIRST_WAIT, _LONGEST_WAIT = 4, 128
# Turns of a team's trial: the system may start its members on one core, and takes up to a tenth of
# a second to move them apart and to speed them up.
_TEAM_TRIAL = 3


class Governor:
    """Chooses, turn by turn, whether the whole team works or its first member alone: `members`."""

    # Now and then the other choice is tried, and kept if it was faster. Trials that fail become
    # rare: they cost less than 1 %.

    def __init__(self, size: int) -> None:
        self.size = self.members = size
        self._seconds: deque[float] = deque(maxlen=_LAST)  # a unit of work, of the choice's turns
        self._wait = self._left = _FIRST_WAIT  # turns until the next trial
        self._trial = 0  # turns left of a trial

    def units(self, most: int) -> int:
        """Return how many units of work the coming turn should take, at most `most`."""
        if self.size == 1 or not most:
            return most
        if not self._seconds:
            return 1
        length = _ALONE_SECONDS if self._trial and self.members == 1 else _TURN_SECONDS
        # Turns are equal: a short one at the end would spend more time on its start than on work.
        turns = max(1, round(most * median(self._seconds) / length))
        return -(-most // turns) if turns < most else 1

    def took(self, seconds: float) -> None:
        """Note how long a unit of the turn took, in seconds, and choose for the next turn."""
        if not self._trial:
            self._seconds.append(seconds)
            self._left -= 1
            if self._left <= 0:
                self.members = self._other()
                self._trial = 1 if self.members == 1 else _TEAM_TRIAL
            return
        self._trial -= 1
        if seconds < median(self._seconds):
            self._trial = 0
            self._seconds.clear()
            self._seconds.append(seconds)
            self._wait = self._left = _FIRST_WAIT
        elif not self._trial:
            self.members = self._other()
            self._wait = self._left = min(2 * self._wait, _LONGEST_WAIT)

    def _other(self) -> int:
        return 1 if self.members == self.size else self.size
