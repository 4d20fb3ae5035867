"""A process that says which rank was killed, when MPI has ended all the others.

When one rank dies, mpiexec kills the rest within milliseconds, and the process number it reports is
not always that of the first. A witness sleeps on the ranks' process descriptors; whichever wakes it
is the cause. It is started by the first rank of a node, for those of that node, and not by MPI.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_SCRIPT = """
import os, select, sys
hint, ranks = sys.argv[1], [part.split("=") for part in sys.argv[2:]]
names = {}
try:
    for rank, pid in ranks:
        names[os.pidfd_open(int(pid))] = f"rank {rank} (process {pid})"
except OSError:
    sys.exit()
waiting = select.poll()
for descriptor in [*names, 0]:
    waiting.register(descriptor, select.POLLIN | select.POLLHUP)
gone = [names[descriptor] for descriptor, _ in waiting.poll() if descriptor]
if not gone:
    # Standard input: a word if all is well, the end of the file if its writer was killed.
    if os.read(0, 1):
        sys.exit()
    waiting.unregister(0)
    gone = [names[descriptor] for descriptor, _ in waiting.poll() if descriptor]
print(f"sparsecore train: {gone[0]} was killed or crashed, and MPI ends the job{hint}",
      file=sys.stderr, flush=True)
"""


@contextmanager
def witness(pids: dict[int, int], hint: str) -> Iterator[None]:
    """Watch processes of this machine while the block lasts.

    Parameters
    ----------
    pids : dict of int to int
        Process of each rank.
    hint : str
        Appended to what is said.
    """
    if not pids or not hasattr(os, "pidfd_open"):
        yield
        return
    arguments = [f"{rank}={pid}" for rank, pid in pids.items()]
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", _SCRIPT, hint, *arguments],
        stdin=subprocess.PIPE,
        start_new_session=True,  # out of reach of mpiexec's signals
    )
    try:
        yield
    finally:
        process.communicate(b"w")
