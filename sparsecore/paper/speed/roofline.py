"""The roofline: the ceilings of one thread of this machine, and the kernels under them."""

from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numba import njit

from sparsecore.bench import spread, timed
from sparsecore.compiled import kernels, programs
from sparsecore.compiled.engine import aligned, metrics
from sparsecore.compiled.lanes import Width, fma, load, splat, total, widest
from sparsecore.config import TrainConfig
from sparsecore.paper.speed.peers import Problem
from sparsecore.paper.store import Result
from sparsecore.train import sgd_rule

_PEAK_STEPS = 2_000_000
_STREAMED = 2**28  # bytes read per measurement of a bandwidth
_CACHES = {"L1": 2**15, "L2": 2**20, "L3": 2**25}  # bytes, where the system does not report them
_SYSTEM = Path("/sys/devices/system/cpu/cpu0/cache")
_jit = njit(nogil=True, error_model="numpy", _nrt=False)


@_jit
def _multiply_add(width, n, a, b, out):
    """Do multiply-adds as fast as the registers can: independent ones, nothing from memory."""
    x, y = splat(width, a), splat(width, b)
    acc = x
    for _ in range(n):
        acc = fma(acc, x, y)
    out[0] = total(acc)


@_jit
def _read(width, lanes, passes, data, out):
    """Read an array again and again, and do as little as possible with it."""
    one, acc = splat(width, np.float32(1)), splat(width, np.float32(0))
    for _ in range(passes):
        for i in range(0, len(data), lanes):
            acc = fma(load(width, data, i), one, acc)
    out[0] = total(acc)


@_jit
def _forward_many(width, blocks, layer, net, work, rule, n):
    noise = kernels.noise_of(rule, 0)
    for _ in range(n):
        for block in range(blocks):
            programs.forward_block(width, layer, block, net, work, work.cursor[0], noise)


@_jit
def _backward_many(sync, wide, width, groups, layer, net, work, rule, velocity, velocity_b, n):
    noise, rate = kernels.noise_of(rule, 0), rule.learning_rate
    sink = kernels.Sink(velocity, velocity_b, None, None, False)
    for _ in range(n):
        programs.backward_layer(
            0, 1, sync, wide, width, layer, net, work, sink, noise, rule, rate, groups
        )


def cache_sizes() -> dict[str, int]:
    """Return the bytes of a core's data caches; L1 and L2 as Linux reports them."""
    sizes = dict(_CACHES)
    for folder in _SYSTEM.glob("index*"):
        with suppress(OSError):
            names = ("level", "type", "size")
            level, kind, size = ((folder / name).read_text().strip() for name in names)
            if kind != "Instruction" and level in ("1", "2") and size.endswith("K"):
                sizes[f"L{level}"] = 1024 * int(size[:-1])
    return sizes


def ceilings() -> Result:
    """Measure the ceilings of one thread of this machine, each the best of five times."""
    lanes = widest()
    width, out = Width(lanes), np.zeros(1, np.float32)

    def shortest(work: Callable[..., object], *args: Any) -> float:
        return float(timed(partial(work, *args, out), 6)[1:].min())

    seconds = shortest(_multiply_add, width, _PEAK_STEPS, np.float32(0.5), np.float32(0.1))
    caches = cache_sizes()
    sets = {"L1": caches["L1"] // 2, "L2": caches["L2"] // 2, "L3": 2**23, "DRAM": 2**29}
    bandwidth = {}
    for level, n_bytes in sets.items():
        data = aligned(n_bytes // 4, np.float32)
        data[:] = 1
        passes = max(1, _STREAMED // n_bytes)
        bandwidth[level] = passes * n_bytes / shortest(_read, width, lanes, passes, data) / 1e9
    return {
        "gflops": 2 * lanes * _PEAK_STEPS / seconds / 1e9, "bandwidth": bandwidth,
        "working_set": sets, "cache": caches,
    }  # fmt: skip


def measure(shapes: Mapping[str, tuple[int, ...]], epsilon: float, repeats: int) -> Result:
    """Time each layer's forward and backward kernel, and place them under the ceilings."""
    found, points = ceilings(), []
    for shape, sizes in shapes.items():
        points += _kernels(shape, sizes, epsilon, repeats)
    for point in points:
        point["level"] = level_of(point["working_set"], found["cache"])
        roof = min(found["gflops"], point["intensity"] * found["bandwidth"][point["level"]])
        point["share"] = point["gflops"] / roof
    return {**found, "kernels": points, "batch": 128, "epsilon": epsilon}


def level_of(n_bytes: int, caches: dict[str, int]) -> str:
    """Return the smallest memory that holds a working set."""
    return next((level for level, size in caches.items() if n_bytes <= size), "DRAM")


def _kernels(shape: str, sizes: tuple[int, ...], epsilon: float, repeats: int) -> list[Result]:
    problem = Problem(sizes, TrainConfig(epsilon=epsilon))
    model, batch = problem.model, problem.config.batch_size
    velocity = model.start_momentum()
    zero = np.float32(0)  # the weights stay, at the full cost of an update
    rule = sgd_rule(problem.config, 1)._replace(learning_rate=zero, weight_decay=zero)
    inputs, labels = problem.data
    points = []
    with model.new_engine(batch) as engine:
        # A whole step fills activations, masks and gradients with realistic values.
        engine.train(rule, inputs, labels, np.arange(batch), batch, 0, metrics())
        net, (sync, work, wide, width) = model.network, engine.alone()
        groups, together = -(-batch // wide.lanes), wide.lanes // width.lanes
        weights, biases = velocity[: model.nnz], velocity[model.nnz :]
        work.act[:] = np.random.default_rng(0).standard_normal(len(work.act), np.float32)
        for layer in range(len(sizes) - 1):
            nnz, common = model[layer].nnz, (layer, net, work, rule)
            forward = partial(_forward_many, width, groups * together, *common)
            backward = partial(_backward_many, sync, wide, width, groups, *common, weights, biases)
            for direction, run, lanes, blocks, slices in (
                ("forward", forward, width.lanes, groups * together, work.forward_slices),
                ("backward", backward, wide.lanes, groups, work.backward_slices),
            ):
                ms = spread(_kernel_ms(run, repeats, work))
                point = _counts(direction, layer, nnz, sizes, lanes, blocks)
                point["working_set"] = -(-point["working_set"] // int(slices[layer]))
                point["gflops"] = point["flops"] / ms["median"] / 1e6
                about = {"shape": shape, "layer": layer + 1, "direction": direction}
                points.append({**about, "nnz": nnz, "ms": ms, **point})
    return points


def _kernel_ms(run: Callable[[int], object], repeats: int, work: kernels.Workspace) -> list[float]:
    """Time a kernel; its rows grow with each call, so they are reset before they overflow."""
    run(1)
    n = max(1, int(0.02 / timed(lambda: run(1))[0]))
    kept, times = work.act.copy(), []
    for _ in range(repeats):
        work.act[:] = kept
        times.append(1e3 * float(timed(lambda: run(n))[0]) / n)
    work.act[:] = kept
    return times


def _counts(
    direction: str, layer: int, nnz: int, sizes: tuple[int, ...], lanes: int, blocks: int
) -> Result:
    """Count operations and bytes of one layer's kernel, without bit masks."""
    n_in, n_out = sizes[layer], sizes[layer + 1]
    row = 4 * lanes
    if direction == "forward":
        # per connection a row, a weight and an index; per neuron a row that is stored
        products, n_bytes, held = 1, (row + 8) * nnz + row * n_out, row * n_in
    else:
        # weight and velocity are read and written, two indices read; then the rows of the layer
        products = 2 if layer else 1
        n_bytes, held = (row + 24) * nnz + row * n_in * products, row * n_out
    flops = 2 * products * lanes * nnz
    totals = {"flops": blocks * flops, "bytes": blocks * n_bytes}
    return {**totals, "intensity": flops / n_bytes, "working_set": held}
