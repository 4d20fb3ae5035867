"""What the operating system says of the ranks on this machine: killed, stopped, not ended.

Nothing here needs MPI, so it also serves before MPI has begun and when it has ended the job.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

_PROC = Path("/proc")
_HAS_DESCRIPTORS = hasattr(os, "pidfd_open")


def trouble(pid: int) -> str | None:
    """Return "gone" or "stopped" if a process of this machine is; None if not, or not known."""
    try:
        state = (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return "gone" if (_PROC / "self").exists() else None
    except OSError:
        return None
    return {"Z": "gone", "X": "gone", "T": "stopped", "t": "stopped"}.get(state)


def missing_siblings() -> str | None:
    """Return which ranks of this machine are stopped or have ended, by what mpiexec has started.

    It serves while MPI begins and ends, when ranks do not know of each other. None if there are
    none, or if another program than MPICH's has started them.
    """
    here, size = (int(os.environ.get(name, 0)) for name in ("MPI_LOCALNRANKS", "PMI_SIZE"))
    parent = _PROC / str(os.getppid())
    try:
        if not (parent / "comm").read_text().startswith("hydra"):
            return None
        found = {}
        for folder in _PROC.glob("[0-9]*"):
            try:
                stat = (folder / "stat").read_text().rpartition(")")[2].split()
                if int(stat[1]) != os.getppid():
                    continue
                for entry in (folder / "environ").read_bytes().split(b"\0"):
                    if entry.startswith(b"PMI_RANK="):
                        found[int(entry[9:])] = int(folder.name)
            except OSError:
                continue  # it has just ended, or is not ours
    except OSError:
        return None
    for rank, pid in sorted(found.items()):
        if trouble(pid) == "stopped":
            return f"rank {rank} (process {pid}) is stopped"
    ended = sorted(set(range(size)) - set(found)) if size == here else []
    return f"rank {ended[0]} has ended" if ended else None


def resume_hint(checkpoint: str | None) -> str:
    """Return how a run that ends too early can go on, to be appended to the cause."""
    there = checkpoint is not None and os.path.exists(checkpoint)
    return f"; --resume goes on from {checkpoint}" if there else ""


# The witness's own program. Its standard input is a socket on which ranks that end say so.
_WITNESS = """
import os, select, signal, socket, sys
path, patience, ranks = sys.argv[1], float(sys.argv[2]), [p.split("=") for p in sys.argv[3:]]
words = socket.socket(fileno=0)
try:
    names = {os.pidfd_open(int(pid)): (rank, pid) for rank, pid in ranks}
except OSError:
    sys.exit()
waiting, ended = select.poll(), set()
for descriptor in [0, *names]:
    waiting.register(descriptor, select.POLLIN)

def say(rank, pid, what):
    print(f"sparsecore train: rank {rank} (process {pid}) {what}", file=sys.stderr, flush=True)

def end_stopped():
    for descriptor, (rank, pid) in names.items():
        with open(f"/proc/{pid}/stat") as file:
            if file.read().rpartition(")")[2].split()[0] in "Tt":
                say(rank, pid, "does not end because it is stopped, and is killed")
                signal.pidfd_send_signal(descriptor, signal.SIGKILL)

while names:
    ready = [descriptor for descriptor, _ in waiting.poll(1000 * patience if ended else None)]
    if 0 in ready:
        ended.add(words.recv(16).decode())
        if "all" in ended:
            break
    elif ready:
        rank, pid = names.pop(ready[0])
        waiting.unregister(ready[0])
        if not ended:
            hint = f"; --resume goes on from {path}" if os.path.exists(path) else ""
            say(rank, pid, f"was killed or crashed{hint}")
        ended.add(rank)
    else:
        end_stopped()
"""


class Witness:
    """A process that watches the ranks of this machine until they have ended.

    When one rank is killed, mpiexec kills the rest within milliseconds, and the process number it
    reports is not always that of the first. The witness, which is not started by MPI, sleeps on
    the ranks' process descriptors; whichever wakes it is the cause, unless it has said that it
    ends. After the first end, mpiexec would wait for ever for a rank that is stopped; the witness
    kills it.

    Parameters
    ----------
    pids : dict of int to int
        Process of each rank of this machine.
    """

    def __init__(self, pids: dict[int, int]) -> None:
        self._pids, self._address = pids, f"\0sparsecore-{min(pids.values())}"

    def start(self, checkpoint: str | None, patience: float) -> None:
        """Start the process; it does nothing where the system has no process descriptors.

        Parameters
        ----------
        checkpoint : str or None
            Where the run that ends too early can be resumed from.
        patience : float
            Seconds in which all end after the first.
        """
        if not _HAS_DESCRIPTORS:
            return
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as words:
            words.bind(self._address)
            process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", _WITNESS, checkpoint or "", str(patience)]
                + [f"{rank}={pid}" for rank, pid in self._pids.items()],
                stdin=words.fileno(),
                start_new_session=True,  # out of reach of mpiexec's signals
            )
        process.returncode = 0  # it outlives this process

    def tell(self, who: int | str) -> None:
        """Say that a rank ends as it means to; "all": that there is nothing to watch any more."""
        if not _HAS_DESCRIPTORS:
            return
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as words, suppress(OSError):
            words.sendto(str(who).encode(), self._address)
