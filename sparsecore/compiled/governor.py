"""Whether a team of threads pays, decided anew while it works.

Two threads are not always faster than one: another process may want a core, and then the team
waits for the member that lost it; or the cores may lie far apart, in a virtual machine from one
minute to the next, and then what they hand each other costs more than the help is worth. No rule
tells beforehand, so it is measured. Nothing here knows what the work is.
"""

from __future__ import annotations

from collections import deque
from statistics import median

# To start the members takes 0.2 ms, so turns are long; one member alone is tried for less.
_TURN_SECONDS, _ALONE_SECONDS = 64e-3, 16e-3
_LAST = 5  # turns whose median is the pace: one that was interrupted does not count
# Turns between trials. At first, enough for a median in which a cold start does not count; in the
# end, 128 are eight seconds, or long steps.
_FIRST_WAIT, _LONGEST_WAIT = 4, 128
# A team that comes back is tried for so many turns: the system may start its members on one core,
# and takes up to a tenth of a second to move them apart and to speed them up.
_TEAM_TRIAL = 3


class Governor:
    """Chooses, turn by turn, whether the whole team works or its first member alone.

    Now and then the other choice is tried for a turn or some, and kept if it was faster than the
    median of the last turns. Trials become rare while they fail, so that they cost less than 1 %.

    Parameters
    ----------
    size : int
        Members of the team.

    Attributes
    ----------
    members : int
        How many should work in the coming turn: `size` or 1.
    """

    def __init__(self, size: int) -> None:
        self.size = self.members = size
        self._seconds: deque[float] = deque(maxlen=_LAST)  # a unit of work, of the choice's turns
        self._wait = self._left = _FIRST_WAIT  # turns until the next trial
        self._trial = 0  # turns left of a trial

    def units(self, most: int) -> int:
        """Return how many units of work the coming turn should take, of `most` that there are."""
        if self.size == 1 or not most:
            return most
        if not self._seconds:
            return 1
        length = _ALONE_SECONDS if self._trial and self.members == 1 else _TURN_SECONDS
        # In equal turns: in a short one at the end, the start would count for more than the work.
        turns = max(1, round(most * median(self._seconds) / length))
        return -(-most // turns) if turns < most else 1

    def took(self, seconds: float) -> None:
        """Tell how long a unit of the turn has taken, in seconds, and choose for the next."""
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
