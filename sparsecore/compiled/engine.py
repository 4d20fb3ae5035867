"""Run the kernels on a network: lane width, aligned buffers, threads, fair shares."""

import contextlib
import mmap
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from sparsecore.compiled import kernels, lanes, programs
from sparsecore.compiled.arrays import Closing, reads
from sparsecore.compiled.kernels import Metrics, Network, Rule, Sink, State, Workspace
from sparsecore.compiled.losses import SOFTMAX, Aim
from sparsecore.compiled.team import PARTS, Governor, Team, checked_size

# Forward gains little from more lanes, and two threads can share a batch of 128.
_FORWARD_LANES = 64
# A row costs about as much as this many connections, for its activation, noise and store.
_ROW_COST = 6
_PREDICT_SAMPLES = 128  # for each thread: starting one takes as long as about 50 samples
_CACHE_LINE, HUGE_PAGE = 64, 2**21
# Rows that are read at random should fill half of a second-level cache of 1 MiB. Smaller slices
# cost more than they save, as do slices in which a row has hardly any connections.
_SLICE_BYTES = 2**19
_SLICE_CONNECTIONS = 4
_idle: dict[int, Team] = {}  #: by size; a team in use is taken out


def aligned(size: int, dtype: type) -> np.ndarray:
    """Return a zeroed 1-D array that begins at a cache line, so that no SIMD load straddles two."""
    # Rows are visited in random order: in 4 KiB pages nearly every visit would miss the TLB.
    n_bytes = size * np.dtype(dtype).itemsize
    if n_bytes >= HUGE_PAGE // 2 and hasattr(mmap, "MADV_HUGEPAGE"):
        whole = -(-n_bytes // HUGE_PAGE) * HUGE_PAGE + HUGE_PAGE
        try:
            memory = mmap.mmap(-1, whole, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        except OSError as error:  # a reader of files would take it for the file's
            raise MemoryError(f"{n_bytes:,} bytes") from error
        with contextlib.suppress(OSError):  # a system without huge pages
            memory.madvise(mmap.MADV_HUGEPAGE)
        raw, boundary = np.frombuffer(memory, np.uint8), HUGE_PAGE
    else:
        raw, boundary = np.zeros(n_bytes + _CACHE_LINE, np.uint8), _CACHE_LINE
    start = -raw.ctypes.data % boundary
    return raw[start : start + n_bytes].view(dtype)


def lane_width(batch_size: int) -> int:
    """Return how many samples the kernels carry in registers for a batch: 8 to `lanes.widest()`."""
    # Wide blocks pad the batch more; narrow ones walk the connections more often, and each walk
    # costs as much as 32 samples' arithmetic.
    widths = [w for w in (128, 64, 32, 16, 8) if w <= lanes.widest()]
    return min(widths, key=lambda w: -(-batch_size // w) * (w + 32))


def metrics() -> Metrics:
    """Return cleared metrics."""
    return Metrics(np.zeros(1), np.zeros(1, np.int64), np.zeros(1, np.int64))


class Engine(Closing):
    """Runs training steps and gradients of one network, with batches of at most `batch_size`."""

    # ``state()`` returns the network's arrays as they are now; the sizes of its layers never
    # change. Memory: 4 bytes and 2 bits per neuron and sample, of whole blocks of lanes.
    def __init__(self, state: Callable[[], State], batch_size: int, threads: int = 1) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size: expected at least one sample, got {batch_size!r}")
        self._state, self._batch_size, network = state, batch_size, state().network
        self._team = Team(threads)
        self.close = self._team.close
        self._governor = Governor(self._team.size)
        n_lanes = lane_width(batch_size)
        self._wide, self._width = lanes.Width(n_lanes), lanes.Width(min(n_lanes, _FORWARD_LANES))
        padded = -(-batch_size // n_lanes) * n_lanes
        act_start = np.concatenate([[0], np.cumsum(network.sizes * padded)])
        act = aligned(int(act_start[-1]), np.float32)
        positive, kept = (aligned(len(act) // 8, np.uint8) for _ in range(2))
        losses, hits = np.empty(padded), np.empty(padded, bool)
        self._buffers = act, act_start, positive, kept, losses, hits
        self._bound = network, self._workspaces(network)

    def _now(self) -> tuple[State, dict[int, Workspace]]:
        """Return the network's arrays, and their workspaces by number of members."""
        state = self._state()
        if self._bound[0] is not state.network:
            self._bound = state.network, self._workspaces(state.network)
        return state, self._bound[1]

    def alone(self) -> tuple[np.ndarray, Workspace, lanes.Width, lanes.Width]:
        """Return what one thread's programs need: sync, workspace, backward and forward width."""
        return self._team.sync, self._now()[1][1], self._wide, self._width

    def _workspaces(self, network: Network) -> dict[int, Workspace]:
        sizes, size, wide = network.sizes, self._team.size, self._wide.lanes
        forward = _slices(sizes[:-1], sizes[1:], network.weight_start, self._width.lanes)
        backward = _slices(sizes[1:], sizes[:-1], network.weight_start, wide)
        most = max(_most(sizes[1:], forward), _most(sizes[:-1], backward))
        cursor = np.empty((size, most), np.int64)
        partial = aligned(_most(sizes[1:-1], backward[1:]) * wide, np.float32)
        return {
            members: Workspace(
                *self._buffers,
                _parts(network.indptr, sizes[1:], members * PARTS),
                _parts(network.out_indptr, sizes[:-1], members * PARTS),
                forward, backward, cursor, partial,
            )
            for members in {1, size}
        }  # fmt: skip

    def _checked(
        self, network: Network, inputs: np.ndarray, targets: np.ndarray | Aim, rows: np.ndarray
    ) -> tuple[np.ndarray, Aim, np.ndarray]:
        """Return samples as the kernels read them, all within bounds."""
        inputs, rows = reads(inputs, np.float32, 2), reads(rows, np.int64)
        n, n_outputs = len(inputs), int(network.sizes[-1])
        if inputs.shape[1] != network.sizes[0]:
            raise ValueError(f"inputs: expected {network.sizes[0]} features, got {inputs.shape[1]}")
        aim = targets if isinstance(targets, Aim) else Aim(SOFTMAX, targets)
        aim = aim.read(n, n_outputs)
        labels = aim.labels if aim.loss == SOFTMAX else reads(np.zeros(n, np.int64), np.int64)
        place = kernels.misplaced(rows, labels, n_outputs)
        if place >= 0:
            raise ValueError(
                f"rows: expected samples below {n} with labels below {n_outputs}, got "
                f"row {rows[place]}"
            )
        return inputs, aim, rows

    def train(
        self, rule: Rule, inputs: np.ndarray, targets: np.ndarray | Aim, rows: np.ndarray,
        batch_size: int, step: int, sums: Metrics,
    ) -> None:  # fmt: skip
        """Take momentum steps over ``inputs[rows]`` in that order, `batch_size` samples each."""
        # `step` is the first step's number. Steps are whole even if an interrupt ends the work.
        state, work = self._now()
        net, velocity = state.network, state.velocity
        if velocity is None:
            raise RuntimeError("the network has no velocity: call start_momentum() first")
        if not 1 <= batch_size <= self._batch_size:
            raise ValueError(f"batch_size: expected 1 to {self._batch_size}, got {batch_size!r}")
        inputs, aim, rows = self._checked(net, inputs, targets, rows)
        nnz, first = len(net.weights), 0
        # Velocities in the order in which backward visits them save 5 to 12 % of a step.
        order = _order(state)
        kernels.reorder(*order, True)
        try:
            while True:
                steps = self._governor.units(-(-(len(rows) - first) // batch_size))
                turn = rows[first : first + steps * batch_size]
                members = self._governor.members
                begin = time.perf_counter()
                self._team.walk(
                    programs.run_batches, self._wide, self._width, net,
                    Sink(velocity[:nnz], velocity[nnz:], None, None, shared=members > 1),
                    work[members], rule, inputs, aim, turn, batch_size, step + first // batch_size,
                    sums, members=members,
                )  # fmt: skip
                if steps:  # without rows the call only compiles
                    seconds = time.perf_counter() - begin  # of full steps; the last may be smaller
                    self._governor.took(seconds * batch_size / len(turn))
                first += len(turn)
                if first >= len(rows):
                    return
        finally:
            kernels.reorder(*order, False)

    def gradient(
        self, out: np.ndarray, rule: Rule, inputs: np.ndarray, targets: np.ndarray | Aim,
        rows: np.ndarray, step: int, sums: Metrics,
    ) -> None:  # fmt: skip
        """Write the gradient of the mean loss over ``inputs[rows]`` into a flat vector."""
        state, work = self._now()
        net, nnz = state.network, len(state.network.weights)
        inputs, aim, rows = self._checked(net, inputs, targets, rows)
        if not 1 <= len(rows) <= self._batch_size:
            raise ValueError(f"rows: expected 1 to {self._batch_size}, got {len(rows)}")
        if out.shape != state.params.shape or out.dtype != np.float32 or not out.flags.carray:
            raise ValueError(
                f"out: expected a contiguous float32 vector of {len(state.params)} values, got "
                f"{out.dtype} of shape {out.shape}"
            )
        # Rate 1 gives the mean gradient; with momentum 0 the first group overwrites `out`.
        plain = rule._replace(learning_rate=np.float32(1), momentum=np.float32(0))
        size = self._team.size
        self._team.walk(
            programs.run_batches, self._wide, self._width, net,
            Sink(None, None, out[:nnz], out[nnz:], shared=size > 1), work[size], plain, inputs,
            aim, rows, len(rows), step, sums,
        )  # fmt: skip


def settle(state: State) -> State:
    """Bring the velocity into CSR order, if an interrupt has left it in transposed order."""
    if state.transposed[0]:
        kernels.reorder(*_order(state), False)
    return state


def _order(state: State) -> tuple[Any, ...]:
    """Return the arguments of `kernels.reorder` but the last; `scratch` holds any layer."""
    starts = state.network.weight_start
    scratch = np.empty(int(np.diff(starts).max()), np.float32)
    return state.velocity, starts, state.network.out_position, scratch, state.transposed


def logits(network: Network, inputs: np.ndarray, threads: int = 1) -> np.ndarray:
    """Return the logits, float32, shape (n, n_classes), of inputs (n, n_features)."""
    inputs = reads(inputs, np.float32, 2)
    members = min(checked_size(threads), max(1, len(inputs) // _PREDICT_SAMPLES))
    width = lanes.Width(min(_FORWARD_LANES, lane_width(max(1, len(inputs)))))
    row = 2 * int(network.sizes.max()) * width.lanes
    act = aligned(members * row, np.float32).reshape(members, row)
    out = np.empty((len(inputs), int(network.sizes[-1])), np.float32)
    rows = reads(np.arange(len(inputs)), np.int64)
    # Starting a team takes as long as predicting hundreds of rows, so it is kept.
    size = threads if members > 1 else 1
    team = _idle.pop(size, None) or Team(size)
    team.walk(programs.predict_range, width, network, inputs, rows, act, out, members=members)
    _idle[size] = team
    return out


def _parts(pointers: np.ndarray, counts: np.ndarray, parts: int) -> np.ndarray:
    """Cut each layer's rows into consecutive parts of about equal work."""
    cuts = np.zeros((len(counts), parts + 1), np.int64)
    start = 0
    for layer, n_rows in enumerate(counts):
        work = pointers[start : start + n_rows + 1] + _ROW_COST * np.arange(n_rows + 1)
        cuts[layer] = np.searchsorted(work, work[-1] * np.arange(parts + 1) / parts)
        cuts[layer, -1] = n_rows
        start += n_rows + 1
    return cuts


def _slices(
    read: np.ndarray, rows: np.ndarray, weight_start: np.ndarray, n_lanes: int
) -> np.ndarray:
    """Return, for each layer, the number of slices of the neurons that its rows read at random."""
    wanted = -(-read * n_lanes * 4 // _SLICE_BYTES)
    worthwhile = np.diff(weight_start) // (rows * _SLICE_CONNECTIONS)
    return np.maximum(1, np.minimum(wanted, worthwhile))


def _most(rows: np.ndarray, slices: np.ndarray) -> int:
    """Return the most rows of a layer that is swept in slices; 0 if none is."""
    return int(rows[slices > 1].max(initial=0))
