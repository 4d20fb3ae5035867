"""The jitted loops over one layer: forward, backward and update, on plain arrays.

Activations are feature-major and cut into blocks of the batch: layer l holds ``n_blocks`` blocks of
shape ``(n_l, lanes)``, one after the other in one flat buffer. So a neuron's batch row is
contiguous, and a block stays in the cache while a layer is swept. Weights are CSR by output neuron.
The backward sweep reads them through the transposed access: it holds one input neuron's activations
in registers, streams the gradients of the neurons it feeds, and obtains the input gradient, the
weight gradient and the update in one pass. A block has `width` lanes; backward takes a group of
blocks at once, `wide` lanes in all. A `row` is a neuron: an output forward, an input backward; in
`rows` it is a sample. A layer whose far side does not fit in the cache is swept in slices of that
side; no sum over connections changes its order.
"""

from typing import Any, NamedTuple

import numpy as np

from sparsecore.compiled.jit import inline, inner, jit, kernel

from sparsecore.compiled.lanes import (  # isort: skip
    at, bernoulli, copy_transposed, fma, load, load_across, load_mask_across, partial_dot, positive,
    prefetch_to_write, put, select, splat, store, store_across, store_mask, tile_of, total, totals,
)  # fmt: skip

# Backward asks so many connections ahead for lines that another thread may have changed. From that
# thread's cache, a line takes as long as ten connections; 8 is worse than no prefetch.
_AHEAD = 16


class Network(NamedTuple):
    """The arrays of a model, in flat vectors; layer l maps sizes[l] to sizes[l + 1] neurons."""

    sizes: np.ndarray  #: int64, neurons per layer, the input first
    weight_start: np.ndarray  #: int64, where each layer begins in `weights`, `indices`
    bias_start: np.ndarray  #: int64, where each layer begins in `biases`
    weights: np.ndarray  #: float32, CSR order
    biases: np.ndarray  #: float32
    indptr: np.ndarray  #: int64, sizes[l + 1] + 1 entries per layer, counted from the layer's start
    indices: np.ndarray  #: int32, input neuron of each connection
    out_indptr: np.ndarray  #: int64, sizes[l] + 1 entries per layer: the transposed access
    out_indices: np.ndarray  #: int32, output neuron of each connection, ordered by input neuron
    out_position: np.ndarray  #: int32 or int64, its place in the layer's CSR order
    slopes: np.ndarray  #: float32, negative slope of each layer's activation


class State(NamedTuple):
    """All that training changes in a model, replaced as one: an interrupt comes before or after."""

    network: Network
    params: np.ndarray  #: float32, its weights, then its biases
    velocity: np.ndarray | None  #: float32, laid out like them
    transposed: np.ndarray  #: bool (1,), whether the velocity is in the transposed access's order


class Workspace(NamedTuple):
    """Buffers of one training step, and the parts into which its rows are cut."""

    act: np.ndarray  #: float32, activations; overwritten by their gradients on the way back
    act_start: np.ndarray  #: int64, where each layer begins in `act`
    positive: np.ndarray  #: uint8, one bit per activation: pre-activation above zero
    kept: np.ndarray  #: uint8, one bit per activation: kept by dropout
    losses: np.ndarray  #: float64, weighted loss of each sample; of class indices alone, in nats
    hits: np.ndarray  #: bool, whether its largest logit is the label's; False without labels
    forward_cuts: np.ndarray  #: int64 (layers, parts + 1), output neurons of each part
    backward_cuts: np.ndarray  #: int64 (layers, parts + 1), input neurons of each part
    forward_slices: np.ndarray  #: int64, per layer, slices of the inputs that forward reads
    backward_slices: np.ndarray  #: int64, per layer, slices of the gradients that backward reads
    cursor: np.ndarray  #: int64 (members, rows), where a row continues; [0] if rows are shared
    partial: np.ndarray  #: float32, input gradients of the layer between two slices


class Rule(NamedTuple):
    """Momentum SGD with decoupled weight decay, and dropout."""

    learning_rate: Any  #: float32
    momentum: Any  #: float32
    weight_decay: Any  #: float32, per step
    dropout: Any  #: float32 in [0, 1): probability that a hidden activation is dropped
    seed: Any  #: uint64, key of the dropout noise


class Noise(NamedTuple):
    """The dropout of one step."""

    key: Any  #: uint64, another in each step
    threshold: Any  #: uint16: a draw of 16 bits below it drops an activation
    scale: Any  #: float32, factor of a kept activation


class Metrics(NamedTuple):
    """Sums over the samples seen; the caller clears them."""

    loss: np.ndarray  #: float64 (1,), of `Workspace.losses`
    correct: np.ndarray  #: int64 (1,), of `Workspace.hits`
    steps: np.ndarray  #: int64 (1,), steps taken


@jit(_nrt=False, forceinline=True)  # as `inline`, but Python calls it, too
def mix(a, b):
    """Hash two integers to a uint64 (the finaliser of splitmix64)."""
    h = np.uint64(a) + np.uint64(0x9E3779B97F4A7C15) * (np.uint64(b) + np.uint64(1))
    h = (h ^ (h >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    h = (h ^ (h >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return h ^ (h >> np.uint64(31))


@inline
def noise_of(rule, step):
    """Return the dropout of a step."""
    threshold = np.uint16(np.float64(rule.dropout) * 2.0**16)
    scale = np.float32(1.0 / (1.0 - np.float64(rule.dropout)))
    return Noise(mix(rule.seed, step), threshold, scale)


@inner
def gather(width, start, stop, inputs, rows, first, count, act, x0):
    """Copy features [start, stop) of samples ``rows[first : first + count]`` to a block at `x0`."""
    # Lanes from `count` on get 0. Whole tiles are transposed in registers.
    lanes, side = width.lanes, tile_of(width)
    whole = start + (stop - start) // side * side
    for tile in range(0, lanes, side):
        edge = start  # features from here on are copied one by one
        if tile + side <= count:
            for feature in range(start, whole, side):
                place = x0 + feature * lanes + tile
                copy_transposed(width, inputs, rows, first + tile, feature, act, place, lanes)
            edge = whole
        for lane in range(tile, tile + side):
            row = at(rows, first + lane) if lane < count else 0
            for feature in range(edge, stop):
                value = inputs[row, feature] if lane < count else np.float32(0)
                put(act, x0 + feature * lanes + lane, value)


class Slice(NamedTuple):
    """A range of the neurons on the far side of a layer, all that one sweep over its rows reads."""

    stop: Any  #: int64, first neuron beyond it; a row's part begins at the row's cursor
    is_first: Any  #: bool
    is_last: Any  #: bool


@inline
def slice_of(n, number, slices):
    """Return one of the slices that `n` neurons are cut into."""
    return Slice(n * (number + 1) // slices, number == 0, number == slices - 1)


@inline
def _within(slice_, row, begin, end, indices, cursor):
    """Return which of a row's connections [begin, end), ascending, lie in a slice."""
    if not slice_.is_first:
        begin = at(cursor, row)
    if not slice_.is_last:
        row_end, end = end, begin
        while end < row_end and at(indices, end) < slice_.stop:
            end += 1
        put(cursor, row, end)
    return begin, end


@inner
def forward(
    width, start, stop, layer, slice_, net, act, x0, y0, hidden, work, cursor, noise, sample
):
    """Add a slice of the inputs to y = W x + b, rows [start, stop); the last slice applies f."""
    # x begins at `x0` of `act`, y at `y0`; `sample` is the block's first in the batch; `hidden`: y
    # are not the logits. With `work`, values for backward are kept, and `noise` drops activations;
    # without it (predictions; the compiler removes what is None) there is one slice.
    base, bias = net.weight_start[layer], net.bias_start[layer]
    pointer = bias + layer  # each layer below has one pointer more than neurons
    slope, nothing = splat(width, net.slopes[layer]), splat(width, np.float32(0))
    if work is not None:
        key, scale = mix(noise.key, layer), splat(width, noise.scale)
    for row in range(start, stop):
        place = y0 + row * width.lanes
        begin, end = base + at(net.indptr, pointer + row), base + at(net.indptr, pointer + row + 1)
        y = splat(width, at(net.biases, bias + row))
        if work is not None:
            begin, end = _within(slice_, row, begin, end, net.indices, cursor)
            if not slice_.is_first:
                y = load(width, act, place)
        for k in range(begin, end):
            x = load(width, act, x0 + np.int64(at(net.indices, k)) * width.lanes)
            y = fma(splat(width, at(net.weights, k)), x, y)
        if hidden and slice_.is_last:
            up = positive(y)
            y = select(up, y, y * slope)
            if work is not None:
                store_mask(work.positive, place, up)
                if noise.threshold > 0:
                    keep = bernoulli(width, np.uint32(mix(key, row)), sample, noise.threshold)
                    store_mask(work.kept, place, keep)
                    y = select(keep, y * scale, nothing)
        store(act, place, y)


class Pace(NamedTuple):
    """Factors of a group's update: the last moves the weights, for all read those of forward."""

    rate: Any  #: float32, factor of a group's summed gradient
    carry: Any  #: float32, factor of the old value: the momentum, or 1 after the first group
    keep: Any  #: float32, factor of the parameter: 1 - weight decay with the last group, or 1
    move: Any  #: float32, factor of the velocity: 1 with the last group, or 0


@inline
def pace_of(rate, rule, group, groups):
    """Return the pace of one of several groups of blocks."""
    one, zero = np.float32(1), np.float32(0)
    carry = rule.momentum if group == 0 else one
    final = group == groups - 1
    return Pace(rate, carry, one - rule.weight_decay if final else one, one if final else zero)


class Sink(NamedTuple):
    """Where backward writes: gradients (CSR order), or velocities (transposed) with parameters."""

    velocity: Any  #: float32 (nnz,) or None
    velocity_b: Any  #: float32 (neurons,) or None
    gradient: Any  #: float32 (nnz,) or None
    gradient_b: Any  #: float32 (neurons,) or None
    shared: Any  #: bool, whether other threads change the same cache lines


@inline
def apply(k, p, g, params, velocity, gradient, pace):
    """Apply a group's summed gradient to the parameter at `p`; its velocity, if any, is at `k`."""
    # v <- mu v - eta g; w <- w + v - lambda w. The compiler removes what is None; a branch on the
    # pace would cut the loops around it in two. For a weight, `k` counts in the order of the
    # transposed access, and `p` in CSR order; for a bias they are equal.
    if velocity is not None:
        v = fma(-pace.rate, g, pace.carry * at(velocity, k))
        put(velocity, k, v)
        put(params, p, fma(pace.move, v, pace.keep * at(params, p)))
    if gradient is not None:
        before = at(gradient, p)
        # Not multiplied by 0: an earlier gradient may have been infinite.
        put(gradient, p, fma(pace.rate, g, before if pace.carry != 0 else np.float32(0)))


@inline
def _prefetch_changes(k, base, places, params, velocity, gradient):
    """Prefetch the lines that `apply` will write for connections [k, k + 4), or the last four."""
    # `k` may lie in the next layer, where `base` is wrong: that prefetch is useless and harmless.
    first = min(k, len(places) - 4)
    for near in range(first, first + 4):
        p = base + np.int64(at(places, near))
        if velocity is not None:
            prefetch_to_write(params, p)
        if gradient is not None:
            prefetch_to_write(gradient, p)


class Blocks(NamedTuple):
    """Where a layer's activations are, in the blocks of the batch that backward takes at once."""

    start: Any  #: int64, where the first block begins in `Workspace.act`
    gap: Any  #: int64, from one block to the next


@inline
def blocks_from(width, layer, block, net, work):
    """Return the blocks of a layer, from block `block` of the batch on."""
    gap = net.sizes[layer] * width.lanes
    return Blocks(work.act_start[layer] + block * gap, gap)


# In backward, `xs` and `ds` are where a layer's activations and the next layer's gradients are;
# `x` and `d` are the lanes of one neuron. `hidden`: `x` is no feature, so it needs a gradient.


@inline
def _connection(wide, width, k, base, net, act, x, ds, acc, hidden):
    """Return a connection's place, the input gradient plus its share, and lanes of its gradient."""
    place = ds.start + np.int64(at(net.out_indices, k)) * width.lanes
    d = load_across(wide, width, act, place, ds.gap)
    p = base + np.int64(at(net.out_position, k))
    if hidden:
        acc = fma(splat(wide, at(net.weights, p)), d, acc)
    return p, acc, partial_dot(x, d)


@inline
def _backward_row(wide, width, begin, end, base, net, sink, act, x, ds, acc, hidden, pace):
    """Walk one input neuron's connections [begin, end); return `acc` with its input gradient."""
    params, velocity, gradient = net.weights, sink.velocity, sink.gradient
    # Four at a time: four sums over lanes together cost little more than one. `total` rounds in
    # another order than `totals`, so a gradient's last bit depends on where a slice begins.
    k = begin
    while k + 4 <= end:
        if sink.shared:
            _prefetch_changes(k + _AHEAD, base, net.out_position, params, velocity, gradient)
        p0, acc, s0 = _connection(wide, width, k, base, net, act, x, ds, acc, hidden)
        p1, acc, s1 = _connection(wide, width, k + 1, base, net, act, x, ds, acc, hidden)
        p2, acc, s2 = _connection(wide, width, k + 2, base, net, act, x, ds, acc, hidden)
        p3, acc, s3 = _connection(wide, width, k + 3, base, net, act, x, ds, acc, hidden)
        g0, g1, g2, g3 = totals(s0, s1, s2, s3)
        apply(k, p0, g0, params, velocity, gradient, pace)
        apply(k + 1, p1, g1, params, velocity, gradient, pace)
        apply(k + 2, p2, g2, params, velocity, gradient, pace)
        apply(k + 3, p3, g3, params, velocity, gradient, pace)
        k += 4
    while k < end:
        p0, acc, s0 = _connection(wide, width, k, base, net, act, x, ds, acc, hidden)
        apply(k, p0, total(s0), params, velocity, gradient, pace)
        k += 1
    return acc


@inner
def _backward_input(wide, width, start, stop, slice_, net, sink, work, xs, ds, pace):
    """Do what `backward` does for the first layer's weights."""
    # Features have no bias and no activation, and need no gradient.
    cursor, nothing = work.cursor[0], splat(wide, np.float32(0))
    for row in range(start, stop):
        x = load_across(wide, width, work.act, xs.start + row * width.lanes, xs.gap)
        begin, end = _within(
            slice_, row, at(net.out_indptr, row), at(net.out_indptr, row + 1), net.out_indices,
            cursor,
        )  # fmt: skip
        _backward_row(wide, width, begin, end, 0, net, sink, work.act, x, ds, nothing, False, pace)


@inner
def backward(wide, width, start, stop, layer, slice_, net, sink, work, xs, ds, noise, pace):
    """Apply the gradients of a layer's weights, for a slice of the neurons that they feed."""
    if layer == 0:
        _backward_input(wide, width, start, stop, slice_, net, sink, work, xs, ds, pace)
        return
    # Rows are outputs of the layer below, and have its biases and slopes. The last slice moves
    # the biases, and replaces activations by pre-activation gradients.
    cursor, act, all_lanes = work.cursor[0], work.act, wide.lanes
    base, bias = net.weight_start[layer], net.bias_start[layer - 1]
    pointer = net.sizes[0] + bias + layer  # as in forward; features have pointers, too
    nothing, scale = splat(wide, np.float32(0)), splat(wide, noise.scale)
    slope = splat(wide, net.slopes[layer - 1] * noise.scale)
    for row in range(start, stop):
        place = xs.start + row * width.lanes
        x = load_across(wide, width, act, place, xs.gap)
        begin = base + at(net.out_indptr, pointer + row)
        end = base + at(net.out_indptr, pointer + row + 1)
        begin, end = _within(slice_, row, begin, end, net.out_indices, cursor)
        acc = nothing if slice_.is_first else load(wide, work.partial, row * all_lanes)
        acc = _backward_row(wide, width, begin, end, base, net, sink, act, x, ds, acc, True, pace)
        if not slice_.is_last:
            store(work.partial, row * all_lanes, acc)
            continue
        up = load_mask_across(wide, width, work.positive, place, xs.gap)
        acc = acc * select(up, scale, slope)  # f' of the pre-activation, times dropout's factor
        if noise.threshold > 0:
            acc = select(load_mask_across(wide, width, work.kept, place, xs.gap), acc, nothing)
        store_across(width, act, place, xs.gap, acc)
        apply(
            bias + row, bias + row, total(acc), net.biases, sink.velocity_b, sink.gradient_b,
            pace,
        )  # fmt: skip


@kernel
def misplaced(rows, labels, n_classes):
    """Return the first place in `rows` whose sample or label does not exist, or -1."""
    for k in range(len(rows)):
        row = rows[k]
        if row < 0 or row >= len(labels) or labels[row] < 0 or labels[row] >= n_classes:
            return k
    return -1


@kernel
def reorder(values, starts, places, scratch, transposed, wanted):
    """Bring values of connections from CSR order into that of the transposed access, or back."""
    # One call reorders all and records it, so no interrupt can come between.
    if transposed[0] == wanted:
        return
    transposed[0] = wanted
    for layer in range(len(starts) - 1):
        start, stop = starts[layer], starts[layer + 1]
        for k in range(start, stop):
            scratch[k - start] = values[k]
        for k in range(start, stop):
            place = np.int64(at(places, k))
            if wanted:
                values[k] = at(scratch, place)
            else:
                put(values, start + place, scratch[k - start])


@kernel
def momentum_step(params, velocity, gradient, out, learning_rate, momentum, weight_decay):
    """Take v <- mu v - eta g; w <- w + v - lambda w over flat vectors, and copy w to `out`."""
    # For `wasap`, where gradients arrive from other ranks; a step here updates in `apply`.
    for k in range(len(params)):
        v = momentum * velocity[k] - learning_rate * gradient[k]
        w = params[k] + v - weight_decay * params[k]
        velocity[k] = v
        params[k] = w
        out[k] = w
