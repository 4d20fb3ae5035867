"""The jitted loops: forward, loss, backward and update over plain arrays.

Activations are feature-major and cut into blocks of the batch: layer l holds ``n_blocks`` blocks of
shape ``(n_l, lanes)``, one after the other in one flat buffer, so a neuron's batch row is
contiguous and a block stays in the cache while a layer is swept. Weights are CSR by output neuron
(a row is one neuron's incoming connections); the backward sweep reads them through the transposed
access (``out_indptr``, ``out_indices``, ``out_position``), so it holds one input neuron's
activations in registers, streams the gradients of the neurons it feeds, and obtains the input
gradient, the weight gradient and the update in one pass. A layer too wide for the cache is swept in
slices, first all connections to its first neurons, then all to the next: what is read at random
stays in the cache, and every sum is still added up in the same order.

Every function fills arrays that it is given; who allocates and checks them is `mlp`. A program
(`train_batches`, `batch_gradient`, `predict_range`) is walked through by all members of a
`team.Team`: a row of a layer is computed by exactly one member, so results do not depend on the
number of threads, nor on who takes which part.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from sparsecore.jit import jit
from sparsecore.lanes import (
    at,
    bernoulli,
    copy_transposed,
    fma,
    lanes_of,
    load,
    load_mask,
    partial_dot,
    positive,
    put,
    select,
    splat,
    store,
    store_mask,
    tile_of,
    total,
    totals,
)
from sparsecore.team import PARTS, barrier, claim

# Two things that Numba must be told, or a step takes 8 ms instead of 2. Without `_nrt`, every
# access to an array of a tuple counts references, atomically, in the inner loop; here no array is
# ever made, so there is nothing to count. And left to itself LLVM calls the bodies of inner loops
# instead of inlining them.
_jit = jit(_nrt=False)
_inline = jit(_nrt=False, forceinline=True)


class Network(NamedTuple):
    """The arrays of a model, in flat vectors; layer l maps sizes[l] to sizes[l + 1] neurons."""

    sizes: np.ndarray  #: int64, neurons per layer, the input first
    weight_start: np.ndarray  #: int64, where each layer begins in `weights`, `indices`
    bias_start: np.ndarray  #: int64, where each layer begins in `biases`
    weights: np.ndarray  #: float32, CSR order
    biases: np.ndarray  #: float32
    indptr: np.ndarray  #: int64, sizes[l + 1] + 1 entries a layer, counted from the layer's start
    indices: np.ndarray  #: int32, input neuron of each connection
    out_indptr: np.ndarray  #: int64, sizes[l] + 1 entries a layer: the transposed access
    out_indices: np.ndarray  #: int32, output neuron of each connection, ordered by input neuron
    out_position: np.ndarray  #: int32 or int64, its place in the layer's CSR order
    slopes: np.ndarray  #: float32, negative slope of each layer's activation


class Workspace(NamedTuple):
    """Buffers of one training step, and the parts that its rows are shared out in."""

    act: np.ndarray  #: float32, activations; overwritten by their gradients on the way back
    act_start: np.ndarray  #: int64, where each layer begins in `act`
    positive: np.ndarray  #: uint8, one bit an activation: pre-activation above zero
    kept: np.ndarray  #: uint8, one bit an activation: kept by dropout
    forward_cuts: np.ndarray  #: int64 (layers, parts + 1), output neurons of each part
    backward_cuts: np.ndarray  #: int64 (layers, parts + 1), input neurons of each part
    forward_slices: np.ndarray  #: int64, per layer, slices of the inputs that forward reads
    backward_slices: np.ndarray  #: int64, per layer, slices of the gradients that backward reads
    cursor: np.ndarray  #: int64, where each row of the layer goes on in the next slice
    partial: np.ndarray  #: float32, input gradients of the layer between two slices


class Rule(NamedTuple):
    """Momentum SGD with decoupled weight decay, and dropout."""

    learning_rate: Any  #: float32
    momentum: Any  #: float32
    weight_decay: Any  #: float32, per step
    dropout: Any  #: float32 in [0, 1): probability that a hidden activation is dropped
    seed: Any  #: uint64, key of the dropout noise


class Metrics(NamedTuple):
    """Sums over the samples seen since the caller last cleared them."""

    loss: np.ndarray  #: float64 (1,), cross-entropy in nats
    correct: np.ndarray  #: int64 (1,), samples whose largest logit is the label's


@_inline
def mix(a, b):
    """Hash two integers to a uint64 (the finaliser of splitmix64)."""
    h = np.uint64(a) + np.uint64(0x9E3779B97F4A7C15) * (np.uint64(b) + np.uint64(1))
    h = (h ^ (h >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    h = (h ^ (h >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return h ^ (h >> np.uint64(31))


@_jit
def _row_start(sizes, layer, side):
    """Where a layer's pointers begin: in `indptr` for side 1, in `out_indptr` for side 0."""
    start = 0
    for below in range(layer):
        start += sizes[below + side] + 1
    return start


@_jit
def _gather(width, start, stop, inputs, rows, first, count, act, x0):
    """Copy features [start, stop) of `count` samples into a feature-major block, padded with 0."""
    lanes, side = lanes_of(width), tile_of(width)
    whole = start + (stop - start) // side * side
    for column in range(0, lanes, side):
        edge = start  # features from here on are copied one by one
        if column + side <= count:
            for feature in range(start, whole, side):
                place = x0 + feature * lanes + column
                copy_transposed(width, inputs, rows, first + column, feature, act, place, lanes)
            edge = whole
        for c in range(column, column + side):
            row = at(rows, first + c) if c < count else 0
            for feature in range(edge, stop):
                value = inputs[row, feature] if c < count else np.float32(0)
                put(act, x0 + feature * lanes + c, value)


class Slice(NamedTuple):
    """A range of the neurons on the far side of a layer: what one sweep over its rows follows."""

    stop: Any  #: int64, where it ends
    first: Any  #: bool
    last: Any  #: bool


@_inline
def _slice(n, number, slices):
    return Slice(n * (number + 1) // slices, number == 0, number == slices - 1)


@_inline
def _within(part, row, begin, end, indices, cursor):
    """Return which of a row's connections [begin, end), ascending, lie in a slice."""
    if not part.first:
        begin = at(cursor, row)
    if not part.last:
        whole, end = end, begin
        while end < whole and at(indices, end) < part.stop:
            end += 1
        put(cursor, row, end)
    return begin, end


@_inline
def _weighted_sum(width, begin, end, net, act, x0, acc):
    """Add the inputs of one output neuron, by its connections [begin, end), to `acc`."""
    lanes = lanes_of(width)
    for k in range(begin, end):
        x = load(width, act, x0 + np.int64(at(net.indices, k)) * lanes)
        acc = fma(splat(width, at(net.weights, k)), x, acc)
    return acc


@_jit
def _forward(
    width, start, stop, layer, part, net, act, x0, y0, hidden, work, key, column, threshold, scale
):
    """Add a slice of the inputs of neurons [start, stop) of a layer; with the last, finish them.

    With a `work`, what backward needs is kept; without, there is one slice only.
    """
    lanes = lanes_of(width)
    base, bias = net.weight_start[layer], net.bias_start[layer]
    pointer = _row_start(net.sizes, layer, 1)
    slope, stretch = splat(width, net.slopes[layer]), splat(width, scale)
    nothing = splat(width, np.float32(0))
    for row in range(start, stop):
        target = y0 + row * lanes
        begin, end = base + at(net.indptr, pointer + row), base + at(net.indptr, pointer + row + 1)
        y = splat(width, at(net.biases, bias + row))
        if work is not None:
            begin, end = _within(part, row, begin, end, net.indices, work.cursor)
            if not part.first:
                y = load(width, act, target)
        y = _weighted_sum(width, begin, end, net, act, x0, y)
        if hidden and part.last:
            up = positive(y)
            y = select(up, y, y * slope)
            if work is not None:
                store_mask(work.positive, target, up)
                if threshold > 0:
                    keep = bernoulli(width, np.uint32(mix(key, row)), column, threshold)
                    store_mask(work.kept, target, keep)
                    y = select(keep, y * stretch, nothing)
        store(act, target, y)


@_jit
def _softmax_cross_entropy(width, n_classes, act, z0, labels, rows, first, count, metrics):
    """Replace a block of logits by the gradient of the summed loss; padding gets gradient 0."""
    lanes = lanes_of(width)
    for column in range(count):
        top, best = -np.inf, 0
        for c in range(n_classes):
            z = at(act, z0 + c * lanes + column)
            if z > top:
                top, best = z, c
        norm = 0.0
        for c in range(n_classes):
            # Subtracting the largest logit keeps exp() from overflowing.
            e = math.exp(at(act, z0 + c * lanes + column) - top)
            norm += e
        label = labels[at(rows, first + column)]
        metrics.loss[0] += math.log(norm) + top - at(act, z0 + label * lanes + column)
        metrics.correct[0] += label == best
        for c in range(n_classes):
            place = z0 + c * lanes + column
            p = math.exp(at(act, place) - top) / norm
            put(act, place, np.float32(p - (c == label)))
    for column in range(count, lanes):
        for c in range(n_classes):
            put(act, z0 + c * lanes + column, np.float32(0))


class Pace(NamedTuple):
    """How a block of the batch moves the parameters.

    The velocity gathers the gradients of all blocks, and the parameters move with the last one,
    because until then backward needs their old values.
    """

    rate: Any  #: float32, factor of the block's summed gradient
    carry: Any  #: float32, factor of what was there: the momentum, or 1 after the first block
    keep: Any  #: float32, factor of the parameter: 1 - weight decay with the last block, or 1
    move: Any  #: float32, factor of the velocity: 1 with the last block, or 0


@_inline
def _pace(rate, rule, momentum, block, blocks):
    one, zero = np.float32(1), np.float32(0)
    carry = momentum if block == 0 else one
    final = block == blocks - 1
    return Pace(rate, carry, one - rule.weight_decay if final else one, one if final else zero)


@_inline
def _apply(k, g, values, velocity, gradient, pace):
    """Use the gradient of parameter k, summed over one block of the batch.

    One of `velocity` and `gradient` is None. With a velocity the momentum step
    v <- mu v - eta g; w <- w + v - lambda w is taken, else the gradient is written. There is no
    branch, which would cut the loops around it in two.
    """
    if velocity is not None:
        v = fma(-pace.rate, g, pace.carry * at(velocity, k))
        put(velocity, k, v)
        put(values, k, fma(pace.move, v, pace.keep * at(values, k)))
    if gradient is not None:
        before = at(gradient, k)
        # Not multiplied by 0: an earlier gradient may have been infinite.
        put(gradient, k, fma(pace.rate, g, before if pace.carry != 0 else np.float32(0)))


@_inline
def _connection(width, k, base, net, act, x, d0, acc, inner):
    """Follow one outgoing connection of an input neuron that has activations `x`.

    Returns the connection's place, the input gradient with it added, and lanes that sum to the
    weight's gradient. Without `inner` nobody needs the input gradient.
    """
    d = load(width, act, d0 + np.int64(at(net.out_indices, k)) * lanes_of(width))
    p = base + np.int64(at(net.out_position, k))
    if inner:
        acc = fma(splat(width, at(net.weights, p)), d, acc)
    return p, acc, partial_dot(x, d)


@_inline
def _backward_row(width, begin, end, base, net, velocity, gradient, act, x, d0, acc, inner, pace):
    """Walk one input neuron's connections [begin, end); return `acc` with its input gradient."""
    # Four at a time, because four sums over lanes together cost little more than one.
    k = begin
    while k + 4 <= end:
        p0, acc, s0 = _connection(width, k, base, net, act, x, d0, acc, inner)
        p1, acc, s1 = _connection(width, k + 1, base, net, act, x, d0, acc, inner)
        p2, acc, s2 = _connection(width, k + 2, base, net, act, x, d0, acc, inner)
        p3, acc, s3 = _connection(width, k + 3, base, net, act, x, d0, acc, inner)
        g0, g1, g2, g3 = totals(s0, s1, s2, s3)
        _apply(p0, g0, net.weights, velocity, gradient, pace)
        _apply(p1, g1, net.weights, velocity, gradient, pace)
        _apply(p2, g2, net.weights, velocity, gradient, pace)
        _apply(p3, g3, net.weights, velocity, gradient, pace)
        k += 4
    while k < end:
        p0, acc, s0 = _connection(width, k, base, net, act, x, d0, acc, inner)
        _apply(p0, total(s0), net.weights, velocity, gradient, pace)
        k += 1
    return acc


@_jit
def _backward_input(width, start, stop, part, net, velocity, gradient, work, x0, d0, pace):
    """Weight gradients and updates of the first layer, for a slice of its outputs."""
    lanes = lanes_of(width)
    nothing = splat(width, np.float32(0))
    for row in range(start, stop):
        x = load(width, work.act, x0 + row * lanes)
        begin, end = _within(
            part, row, at(net.out_indptr, row), at(net.out_indptr, row + 1), net.out_indices,
            work.cursor,
        )  # fmt: skip
        _backward_row(
            width, begin, end, 0, net, velocity, gradient, work.act, x, d0, nothing, False, pace
        )


@_jit
def _backward(
    width, start, stop, layer, part, net, velocity, gradient, velocity_b, gradient_b, work, x0, d0,
    threshold, scale, pace,
):  # fmt: skip
    """Gradients and updates of a hidden layer's outgoing weights, for a slice of their targets.

    With the last slice, also of that layer's biases, and its activations are replaced by the
    gradients of its pre-activations.
    """
    lanes = lanes_of(width)
    act = work.act
    base, bias = net.weight_start[layer], net.bias_start[layer - 1]
    pointer = _row_start(net.sizes, layer, 0)
    nothing, stretch = splat(width, np.float32(0)), splat(width, scale)
    slope = splat(width, net.slopes[layer - 1] * scale)
    for row in range(start, stop):
        place = x0 + row * lanes
        x = load(width, act, place)
        begin = base + at(net.out_indptr, pointer + row)
        end = base + at(net.out_indptr, pointer + row + 1)
        begin, end = _within(part, row, begin, end, net.out_indices, work.cursor)
        acc = nothing if part.first else load(width, work.partial, row * lanes)
        acc = _backward_row(
            width, begin, end, base, net, velocity, gradient, act, x, d0, acc, True, pace
        )
        if not part.last:
            store(work.partial, row * lanes, acc)
            continue
        acc = acc * select(load_mask(width, work.positive, place), stretch, slope)
        if threshold > 0:
            acc = select(load_mask(width, work.kept, place), acc, nothing)
        store(act, place, acc)
        _apply(bias + row, total(acc), net.biases, velocity_b, gradient_b, pace)


@_jit
def _step(
    member, size, sync, width, net, velocity, velocity_b, gradient, gradient_b, work, rule,
    inputs, labels, rows, first, count, step, metrics,
):  # fmt: skip
    """One batch: forward, loss, and backward into either the parameters or `gradient`."""
    lanes = lanes_of(width)
    depth = len(net.sizes) - 1
    blocks = (count + lanes - 1) // lanes
    threshold = np.uint16(np.float64(rule.dropout) * 2.0**16)
    scale = np.float32(1.0 / (1.0 - np.float64(rule.dropout)))
    rate = np.float32(1.0 / count)
    momentum = np.float32(0)
    if gradient is None:
        rate, momentum = np.float32(rule.learning_rate / count), rule.momentum

    features = net.sizes[0]
    side = tile_of(width)
    tiles, parts = (features + side - 1) // side, size * PARTS
    for block in range(blocks):
        x0 = work.act_start[0] + block * features * lanes
        here = min(lanes, count - block * lanes)
        part = claim(sync, size, member)
        while part >= 0:
            start = tiles * part // parts * side
            stop = min(features, tiles * (part + 1) // parts * side)
            _gather(width, start, stop, inputs, rows, first + block * lanes, here, work.act, x0)
            part = claim(sync, size, member)
        barrier(sync, size)

    for layer in range(depth):
        hidden = layer < depth - 1
        key = mix(mix(rule.seed, step), layer)
        for block in range(blocks):
            x0 = work.act_start[layer] + block * net.sizes[layer] * lanes
            y0 = work.act_start[layer + 1] + block * net.sizes[layer + 1] * lanes
            slices = work.forward_slices[layer]
            for number in range(slices):
                inputs_here = _slice(net.sizes[layer], number, slices)
                part = claim(sync, size, member)
                while part >= 0:
                    _forward(
                        width, work.forward_cuts[layer, part], work.forward_cuts[layer, part + 1],
                        layer, inputs_here, net, work.act, x0, y0, hidden, work, key,
                        np.uint32(block * lanes), threshold, scale,
                    )  # fmt: skip
                    part = claim(sync, size, member)
                # The slices of a sum come in order.
                barrier(sync, size)

    if member == 0:
        bias, n_classes = net.bias_start[depth - 1], net.sizes[depth]
        for block in range(blocks):
            z0 = work.act_start[depth] + block * n_classes * lanes
            here = min(lanes, count - block * lanes)
            _softmax_cross_entropy(
                width, n_classes, work.act, z0, labels, rows, first + block * lanes, here, metrics
            )
            pace = _pace(rate, rule, momentum, block, blocks)
            for c in range(n_classes):
                g = total(load(width, work.act, z0 + c * lanes))
                _apply(bias + c, g, net.biases, velocity_b, gradient_b, pace)
    barrier(sync, size)

    for layer in range(depth - 1, -1, -1):
        for block in range(blocks):
            pace = _pace(rate, rule, momentum, block, blocks)
            x0 = work.act_start[layer] + block * net.sizes[layer] * lanes
            d0 = work.act_start[layer + 1] + block * net.sizes[layer + 1] * lanes
            slices = work.backward_slices[layer]
            for number in range(slices):
                outputs_here = _slice(net.sizes[layer + 1], number, slices)
                part = claim(sync, size, member)
                while part >= 0:
                    start = work.backward_cuts[layer, part]
                    stop = work.backward_cuts[layer, part + 1]
                    if layer == 0:
                        _backward_input(
                            width, start, stop, outputs_here, net, velocity, gradient, work, x0,
                            d0, pace,
                        )  # fmt: skip
                    else:
                        _backward(
                            width, start, stop, layer, outputs_here, net, velocity, gradient,
                            velocity_b, gradient_b, work, x0, d0, threshold, scale, pace,
                        )  # fmt: skip
                    part = claim(sync, size, member)
                # The blocks' updates of a weight, and the slices of a sum, come in order.
                barrier(sync, size)


@_jit
def train_batches(
    member, size, sync, width, net, velocity, velocity_b, work, rule,
    inputs, labels, rows, batch, step, metrics,
):  # fmt: skip
    """Take momentum steps over `rows`, `batch` samples each; the last one may be smaller.

    Source: DESIGN's SGD with momentum (the paper, section on sparse training); cost
    O(nnz * batch) a step, nothing is allocated.
    """
    for first in range(0, len(rows), batch):
        count = min(batch, len(rows) - first)
        _step(
            member, size, sync, width, net, velocity, velocity_b, None, None, work, rule,
            inputs, labels, rows, first, count, step + first // batch, metrics,
        )  # fmt: skip


@_jit
def batch_gradient(
    member, size, sync, width, net, gradient, gradient_b, work, rule,
    inputs, labels, rows, step, metrics,
):  # fmt: skip
    """Write the gradient of the mean loss over `rows` into two flat vectors."""
    _step(
        member, size, sync, width, net, None, None, gradient, gradient_b, work, rule,
        inputs, labels, rows, 0, len(rows), step, metrics,
    )  # fmt: skip


@_jit
def predict_range(member, size, width, net, inputs, rows, act, out):
    """Write the logits of ``inputs[rows]`` to `out`; members take turns at blocks of samples.

    `act` has one row a member, with room for two layers of one block.
    """
    lanes = lanes_of(width)
    depth = len(net.sizes) - 1
    n, half = len(rows), act.shape[1] // 2
    mine = act[member]
    everything = Slice(0, True, True)
    for first in range(member * lanes, n, size * lanes):
        count = min(lanes, n - first)
        _gather(width, 0, net.sizes[0], inputs, rows, first, count, mine, 0)
        for layer in range(depth):
            x0, y0 = half * (layer % 2), half * ((layer + 1) % 2)
            _forward(
                width, 0, net.sizes[layer + 1], layer, everything, net, mine, x0, y0,
                layer < depth - 1, None, np.uint64(0), np.uint32(0), np.uint16(0), np.float32(1),
            )  # fmt: skip
        z0 = half * (depth % 2)
        for column in range(count):
            for c in range(net.sizes[depth]):
                out[first + column, c] = at(mine, z0 + c * lanes + column)


@_jit
def momentum_step(values, velocity, gradient, out, learning_rate, momentum, weight_decay):
    """Take v <- mu v - eta g; w <- w + v - lambda w over flat vectors, and copy the new w to `out`.

    The same rule as `_apply`, for a gradient that came from elsewhere. 24 bytes a parameter move.
    """
    for k in range(len(values)):
        v = momentum * velocity[k] - learning_rate * gradient[k]
        w = values[k] + v - weight_decay * values[k]
        velocity[k] = v
        values[k] = w
        out[k] = w
