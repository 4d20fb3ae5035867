"""A process that outlives an MPI job and reports which rank was killed or crashed first.

When one rank is killed, mpiexec kills the rest within milliseconds, and the process ID that it
reports is not always that of the first. The witness, which is not started by MPI, sleeps on the
ranks' process descriptors; the rank that wakes it is the cause, unless it has announced its end.
Once a rank has ended, mpiexec would wait forever for a stopped rank: the witness kills it.
This file is also its program; it imports little, so that it soon watches the ranks.
"""

import os
import select
import signal
import socket
import sys
from contextlib import suppress

_EXITING = 0x4  # a flag of the kernel: PF_EXITING


def start(pids: dict[int, int], checkpoint: str | None, patience: float) -> str | None:
    """Start the witness of a machine's ranks; return its address, None if it cannot run."""
    if not hasattr(os, "pidfd_open"):
        return None
    import subprocess  # here, so that the program itself starts sooner

    address = f"\0sparsecore-{os.urandom(16).hex()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as words:
        words.bind(address)
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", __file__, checkpoint or "", str(patience)]
            + [f"{rank}={pid}" for rank, pid in pids.items()],
            stdin=words.fileno(), stdout=subprocess.PIPE,
            start_new_session=True,  # out of reach of mpiexec's signals
        )  # fmt: skip
    with process.stdout as ready:  # type: ignore[union-attr]
        ready.read(1)  # it sees the ranks from here on, or has ended
    process.returncode = 0  # it outlives this process
    return address


def tell(address: str | None, who: int | str) -> None:
    """Announce that a rank ends on purpose; "all": that there is nothing left to watch."""
    if address is not None:
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as words:
            words.sendto(str(who).encode(), address)


def resume_hint(checkpoint: str | None) -> str:
    """Return how to resume a run that ended early, to be appended to the cause."""
    there = checkpoint and os.path.exists(checkpoint)
    return f"; --resume continues from {checkpoint}" if there else ""


def _facts(pid: str) -> list[str]:
    """Return the fields of a process's state, from the letter on; "X" if it has ended."""
    with suppress(OSError), open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(")")[2].split()
    return ["X"]


def _ends(pid: str) -> bool:
    """Return whether a process is about to end, though its threads may still run."""
    facts = _facts(pid)
    return facts[0] in "ZX" or bool(int(facts[6]) & _EXITING)


def _say(ranks: dict[str, str], what: str) -> None:
    who = " or ".join(f"rank {rank} (process {pid})" for rank, pid in ranks.items())
    with suppress(OSError):  # nobody may read it any more
        print(f"sparsecore train: {who} {what}\n", end="", file=sys.stderr, flush=True)


def _main(checkpoint: str, patience: str, *ranks: str) -> None:
    """Watch the ranks (``rank=pid``) until all have ended; standard input is where they `tell`."""
    words = socket.socket(fileno=0)
    try:
        names = {
            os.pidfd_open(int(pid)): (rank, pid) for rank, pid in (r.split("=") for r in ranks)
        }
    except OSError:  # a rank has ended already, or this kernel has no descriptors
        return
    os.write(1, b".")
    waiting = select.poll()
    ended: set[str] = set()
    for descriptor in (0, *names):
        waiting.register(descriptor, select.POLLIN)
    while names:
        ready = {fd for fd, _ in waiting.poll(1000 * float(patience) if ended else None)}
        if ready:
            # The other ranks and mpiexec see that a rank ends before it has ended. They may finish
            # without it, and mpiexec may kill them; one of those that end now was first.
            ending = {rank: pid for fd, (rank, pid) in names.items() if fd in ready or _ends(pid)}
            told = set()  # read later, so that it has the last words of all that end
            with suppress(BlockingIOError):
                while True:
                    told.add(words.recv(16, socket.MSG_DONTWAIT).decode())
            # Later still: a rank that has announced its end may be why the others end.
            meant = any(r in told and (fd in ready or _ends(pid)) for fd, (r, pid) in names.items())
            if ending and not meant and not ended:
                _say(ending, f"was killed or crashed{resume_hint(checkpoint)}")
            if "all" in told:
                return
            for descriptor in ready - {0}:
                waiting.unregister(descriptor)
                told.add(names.pop(descriptor)[0])
            ended |= told
        else:
            for descriptor, (rank, pid) in names.items():
                if _facts(pid)[0] in "Tt":
                    _say({rank: pid}, "is stopped and so does not end: killing it")
                    with suppress(OSError):
                        signal.pidfd_send_signal(descriptor, signal.SIGKILL)


if __name__ == "__main__":
    _main(*sys.argv[1:])
