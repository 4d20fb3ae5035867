"""The jitted sweeps of a small batch through one layer of tiles, forward and backward.

The neurons of a connection are anywhere in gigabytes. To avoid waits for memory, a sweep goes along
the columns or the rows of the grid, so the neurons of one side stay in the cache. Values for the
other side go to a slot of each connection, in the order of the tiles. Forward, inputs go to the
slots column by column, and from there to the outputs row by row. Backward, output gradients go to
the slots row by row, and are then combined with the inputs column by column: this gives input
gradients, weight gradients and the update. (Propagation blocking: Beamer, Asanović and Patterson,
2017.) One part of the layer at a time, a `Strip`, has slots. Activations are neuron-major. They are
stored before the activation function: All-ReLU's output does not reveal the sign of its input.
"""

from typing import Any, NamedTuple

import numpy as np

from sparsecore.compiled.jit import inline, kernel
from sparsecore.compiled.team import shares

from sparsecore.compiled.lanes import (  # isort: skip
    at, fma, load, packed, partial_dot, positive, put, select, splat, store, stream, total, totals,
)  # fmt: skip


class Strip(NamedTuple):
    """Tiles whose connections have slots at the same time: a rectangle of the grid."""

    top: int  #: first row of tiles
    bottom: int  #: one past the last row
    left: int  #: first column of tiles
    right: int  #: one past the last column
    shift: np.ndarray  #: int64 (rows of the grid,): slot of a connection minus its place


class Rates(NamedTuple):
    """Momentum SGD with decoupled weight decay, for one layer."""

    learning_rate: Any  #: float32
    momentum: Any  #: float32
    keep: Any  #: float32, 1 - weight decay


@inline
def _activated(width, z, slope):
    return select(positive(z), z, z * splat(width, slope))


@inline
def _momentum(k, gradient, values, velocity, update):
    """Take v <- mu v - eta g; w <- w + v - lambda w."""
    v = fma(-update.learning_rate, gradient, update.momentum * at(velocity, k))
    put(velocity, k, v)
    put(values, k, fma(update.keep, at(values, k), v))


@kernel
def send_inputs(member, size, sync, width, grid, tiles, strip, z, slope, slots):
    """Write each connection's input activation to its slot."""
    lanes = width.lanes
    for part in shares(sync, size, member, strip.left, strip.right):
        for column in part:
            first = column * grid.side_in
            for row in range(strip.top, strip.bottom):
                tile, shift = row * grid.across + column, at(strip.shift, row)
                for k in range(at(tiles.start, tile), at(tiles.start, tile + 1)):
                    x = load(width, z, (first + np.int64(at(tiles.columns, k))) * lanes)
                    stream(slots, (k + shift) * lanes, _activated(width, x, slope))


@kernel
def receive_inputs(member, size, sync, width, grid, tiles, strip, slots, biases, z):
    """Sum up the inputs of whole rows of tiles: z = bias + weights times slots."""
    lanes = width.lanes
    for part in shares(sync, size, member, strip.top, strip.bottom):
        for row in part:
            first, shift = row * grid.side_out, at(strip.shift, row)
            for neuron in range(first, min(first + grid.side_out, grid.n_out)):
                store(z, neuron * lanes, splat(width, at(biases, neuron)))
            tile = row * grid.across
            for k in range(at(tiles.start, tile), at(tiles.start, tile + grid.across)):
                place = (first + np.int64(at(tiles.rows, k))) * lanes
                x = load(width, slots, (k + shift) * lanes)
                w = splat(width, at(tiles.weights, k))
                store(z, place, fma(w, x, load(width, z, place)))


@kernel
def update_biases(member, size, sync, width, grid, delta, biases, velocity, update):
    """Sum each output gradient over the batch and move the bias."""
    for part in shares(sync, size, member, 0, grid.n_out):
        for neuron in part:
            g = total(load(width, delta, neuron * width.lanes))
            _momentum(neuron, g, biases, velocity, update)


@kernel
def send_deltas(member, size, sync, width, grid, tiles, strip, delta, slots):
    """Write each connection's output gradient to its slot."""
    lanes = width.lanes
    for part in shares(sync, size, member, strip.top, strip.bottom):
        for row in part:
            first, shift = row * grid.side_out, at(strip.shift, row)
            tile = row * grid.across
            begin, end = at(tiles.start, tile + strip.left), at(tiles.start, tile + strip.right)
            for k in range(begin, end):
                d = load(width, delta, (first + np.int64(at(tiles.rows, k))) * lanes)
                stream(slots, (k + shift) * lanes, d)


@inline
def _connection(width, k, first, shift, tiles, slots, z, slope, sums, inner):
    """Follow one connection back; return lanes that sum to its weight's gradient."""
    lanes = width.lanes
    d = load(width, slots, (k + shift) * lanes)
    column = np.int64(at(tiles.columns, k))
    x = _activated(width, load(width, z, (first + column) * lanes), slope)
    if inner:
        place = column * lanes
        g = fma(splat(width, at(tiles.weights, k)), d, load(width, sums, place))
        store(sums, place, g)
    return partial_dot(x, d)


@kernel
def receive_deltas(
    member, size, sync, width, four, grid, tiles, strip, slots, z, slope, gradients, update, inner
):
    """Move the weights of whole columns of tiles; with `inner`, replace z by its gradient."""
    lanes = width.lanes
    sums, one = gradients[member], splat(width, np.float32(1))
    rate, carry = splat(four, -update.learning_rate), splat(four, update.momentum)
    keep = splat(four, update.keep)
    for part in shares(sync, size, member, strip.left, strip.right):
        for column in part:
            first = column * grid.side_in
            here = min(grid.side_in, grid.n_in - first)
            if inner:
                for neuron in range(here):
                    store(sums, neuron * lanes, splat(width, np.float32(0)))
            for row in range(strip.top, strip.bottom):
                tile, s = row * grid.across + column, at(strip.shift, row)
                k, end = at(tiles.start, tile), at(tiles.start, tile + 1)
                # Four at a time: four sums over lanes together cost little more than one.
                while k + 4 <= end:
                    d0 = _connection(width, k, first, s, tiles, slots, z, slope, sums, inner)
                    d1 = _connection(width, k + 1, first, s, tiles, slots, z, slope, sums, inner)
                    d2 = _connection(width, k + 2, first, s, tiles, slots, z, slope, sums, inner)
                    d3 = _connection(width, k + 3, first, s, tiles, slots, z, slope, sums, inner)
                    g0, g1, g2, g3 = totals(d0, d1, d2, d3)
                    v = fma(rate, packed(g0, g1, g2, g3), carry * load(four, tiles.velocity, k))
                    store(tiles.velocity, k, v)
                    store(tiles.weights, k, fma(keep, load(four, tiles.weights, k), v))
                    k += 4
                while k < end:
                    d0 = _connection(width, k, first, s, tiles, slots, z, slope, sums, inner)
                    _momentum(k, total(d0), tiles.weights, tiles.velocity, update)
                    k += 1
            if inner:
                for neuron in range(here):
                    place = (first + neuron) * lanes
                    up = positive(load(width, z, place))
                    g = load(width, sums, neuron * lanes)
                    store(z, place, g * select(up, one, splat(width, slope)))
