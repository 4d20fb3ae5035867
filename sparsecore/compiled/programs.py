"""The jitted programs: training steps, a gradient, predictions; a team's members walk through them.

A batch is ``rows[first : first + count]``, padded to `groups` groups of `together` blocks of
`lanes` samples; backward takes a group at once. Padding has inputs 0 and, by `loss_gradient`,
gradients 0, so no sum over the batch counts it. `x0`, `y0` and `z0` are where a block of inputs,
outputs or logits begins in `act`. Each of `size` members walks through a program as one `member`.

Forward, each member takes some blocks of the batch through all layers, without waiting for the
others. If the blocks cannot be shared evenly, and always backward, members share the neurons: a
weight's gradient sums over all samples. One member adds up each sum, in a fixed order, so results
depend neither on the number of threads nor on which member takes which part.
"""

import numpy as np

from sparsecore.compiled import kernels
from sparsecore.compiled.jit import inner, kernel
from sparsecore.compiled.lanes import at, load_across, tile_of, total
from sparsecore.compiled.losses import loss_gradient
from sparsecore.compiled.team import PARTS, barrier, claimed


@inner
def _forward_by_neurons(
    member, size, sync, width, net, work, noise, inputs, aim, rows, first, count, blocks
):
    """Forward up to the gradients of the logits; members share the neurons of each layer."""
    features, side = net.sizes[0], tile_of(width)
    tiles, parts = (features + side - 1) // side, size * PARTS
    for block in range(blocks):
        for part in claimed(sync, size, member):
            start = tiles * part // parts * side
            stop = min(features, tiles * (part + 1) // parts * side)
            _gather(width, start, stop, block, net, work, inputs, rows, first, count)

    for layer in range(len(net.sizes) - 1):
        for block in range(blocks):
            for number in range(work.forward_slices[layer]):
                # All are done before the next block or slice: slices of a sum come in order.
                for part in claimed(sync, size, member):
                    start, stop = work.forward_cuts[layer, part], work.forward_cuts[layer, part + 1]
                    _forward_rows(
                        width, start, stop, layer, number, block, net, work, work.cursor[0], noise
                    )

    if member == 0:
        for block in range(blocks):
            _loss(width, net, work, aim, rows, first, block, count)


@inner
def _forward_by_samples(
    member, size, width, net, work, noise, inputs, aim, rows, first, count, blocks
):
    """Forward up to the gradients of the logits; members share the blocks of the batch."""
    for block in range(member, blocks, size):
        _gather(width, 0, net.sizes[0], block, net, work, inputs, rows, first, count)
        for layer in range(len(net.sizes) - 1):
            forward_block(width, layer, block, net, work, work.cursor[member], noise)
        _loss(width, net, work, aim, rows, first, block, count)


@inner
def _gather(width, start, stop, block, net, work, inputs, rows, first, count):
    """Copy features [start, stop) of the samples of a block of the batch."""
    begin, x0 = block * width.lanes, kernels.blocks_from(width, 0, block, net, work).start
    here = max(0, min(width.lanes, count - begin))
    kernels.gather(width, start, stop, inputs, rows, first + begin, here, work.act, x0)


@inner
def forward_block(width, layer, block, net, work, cursor, noise):
    """Forward a block of the batch through all neurons of a layer."""
    for number in range(work.forward_slices[layer]):
        stop = net.sizes[layer + 1]
        _forward_rows(width, 0, stop, layer, number, block, net, work, cursor, noise)


@inner
def _forward_rows(width, start, stop, layer, number, block, net, work, cursor, noise):
    """Forward a block of the batch through rows [start, stop) of a layer, for a slice of inputs."""
    x0 = kernels.blocks_from(width, layer, block, net, work).start
    y0 = kernels.blocks_from(width, layer + 1, block, net, work).start
    slice_ = kernels.slice_of(net.sizes[layer], number, work.forward_slices[layer])
    kernels.forward(
        width, start, stop, layer, slice_, net, work.act, x0, y0, layer < len(net.sizes) - 2, work,
        cursor, noise, np.uint32(block * width.lanes),
    )  # fmt: skip


@inner
def _loss(width, net, work, aim, rows, first, block, count):
    """Turn a block's logits into their gradients."""
    depth, start = len(net.sizes) - 1, block * width.lanes
    z0 = work.act_start[depth] + start * net.sizes[depth]
    loss_gradient(
        width, net.sizes[depth], work.act, z0, aim, rows, first + start,
        max(0, min(width.lanes, count - start)), work.losses[start:], work.hits[start:],
    )  # fmt: skip


@inner
def backward_layer(
    member, size, sync, wide, width, layer, net, work, sink, noise, rule, rate, groups
):
    """Backward, `wide` lanes at a time; members share the neurons that feed the layer."""
    # Who takes a neuron alone writes its row of `act`, its bias and its outgoing weights: no locks.
    together = wide.lanes // width.lanes
    for group in range(groups):
        pace = kernels.pace_of(rate, rule, group, groups)
        xs = kernels.blocks_from(width, layer, group * together, net, work)
        ds = kernels.blocks_from(width, layer + 1, group * together, net, work)
        slices = work.backward_slices[layer]
        for number in range(slices):
            slice_ = kernels.slice_of(net.sizes[layer + 1], number, slices)
            # The groups' updates of a weight, and the slices of a sum, come in order.
            for part in claimed(sync, size, member):
                start, stop = work.backward_cuts[layer, part], work.backward_cuts[layer, part + 1]
                kernels.backward(
                    wide, width, start, stop, layer, slice_, net, sink, work, xs, ds, noise, pace
                )


@kernel
def run_batches(
    member, size, sync, wide, width, net, sink, work, rule, inputs, aim, rows, batch, step,
    metrics,
):  # fmt: skip
    """Process `rows`, `batch` samples at a time: forward, loss, and backward into `sink`."""
    depth = len(net.sizes) - 1
    bias = net.bias_start[depth - 1]
    for first in range(0, len(rows), batch):
        count = min(batch, len(rows) - first)  # the last batch may be smaller
        groups, together = (count + wide.lanes - 1) // wide.lanes, wide.lanes // width.lanes
        blocks = groups * together
        noise = kernels.noise_of(rule, step + first // batch)
        rate = np.float32(rule.learning_rate / count)  # backward sums; the rule wants the mean
        if blocks % size == 0:  # else some would wait for another's last block
            _forward_by_samples(
                member, size, width, net, work, noise, inputs, aim, rows, first, count, blocks
            )
        else:
            _forward_by_neurons(
                member, size, sync, width, net, work, noise, inputs, aim, rows, first, count, blocks
            )
        barrier(sync, size)

        if member == 0:  # the others go on: nobody else reads these sums and biases in this step
            for sample in range(count):
                metrics.loss[0] += work.losses[sample]
                metrics.correct[0] += work.hits[sample]
            for group in range(groups):
                pace = kernels.pace_of(rate, rule, group, groups)
                zs = kernels.blocks_from(width, depth, group * together, net, work)
                for c in range(net.sizes[depth]):
                    place = zs.start + c * width.lanes
                    g = total(load_across(wide, width, work.act, place, zs.gap))
                    kernels.apply(
                        bias + c, bias + c, g, net.biases, sink.velocity_b, sink.gradient_b,
                        pace,
                    )  # fmt: skip
        for layer in range(depth - 1, -1, -1):
            backward_layer(
                member, size, sync, wide, width, layer, net, work, sink, noise, rule, rate, groups
            )
        if member == 0:  # all have passed the last barrier: the step is whole
            metrics.steps[0] += 1


@kernel
def predict_range(member, size, sync, width, net, inputs, rows, act, out):
    """Write the logits of ``inputs[rows]`` to `out`; members take blocks of samples in turn."""
    lanes = width.lanes
    depth = len(net.sizes) - 1
    n, half = len(rows), act.shape[1] // 2
    mine = act[member]  # it has room for two layers of one block
    everything = kernels.Slice(0, True, True)  # the last slice's `stop` is not read
    for first in range(member * lanes, n, size * lanes):
        count = min(lanes, n - first)
        kernels.gather(width, 0, net.sizes[0], inputs, rows, first, count, mine, 0)
        for layer in range(depth):
            x0, y0 = half * (layer % 2), half * ((layer + 1) % 2)
            kernels.forward(
                width, 0, net.sizes[layer + 1], layer, everything, net, mine, x0, y0,
                layer < depth - 1, None, None, None, np.uint32(0),
            )  # fmt: skip
        z0 = half * (depth % 2)
        for lane in range(count):
            for c in range(net.sizes[depth]):
                out[first + lane, c] = at(mine, z0 + c * lanes + lane)
