"""Dropout of attention weights as a function of (seed, head, query, key), so that forward and backward agree.

The random bits are Philox 2x32 with 7 rounds (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011). One
evaluation yields eight draws of 8 bits, for the weights whose query differs in bit 3 and whose key differs in bits 3
and 4 only. In the register layouts of tensor cores, one thread of the forward kernel holds all eight of them, and one
of the backward kernel, whose tile is transposed, four. So the compiler evaluates the rounds once for eight or four
weights.

Draws of 8 bits alone only allow probabilities that are multiples of 1/256. So each head has its own threshold, one of
the two multiples next to the probability, drawn so that the mean over heads is right, and scales the kept weights by
its own factor.
"""

import triton
import triton.language as tl

from cond_detr_kernels.conditional_attention.reference import PHILOX_KEY_STEP, PHILOX_MULTIPLIER, PHILOX_ROUNDS

_MULTIPLIER = tl.constexpr(PHILOX_MULTIPLIER)
_KEY_STEP = tl.constexpr(PHILOX_KEY_STEP)
_ROUNDS = tl.constexpr(PHILOX_ROUNDS)


@triton.jit
def philox(low, high, seed):
    """Philox 2x32: two random words for each counter, all uint32."""
    key = seed.to(tl.uint32)
    for _ in tl.static_range(_ROUNDS):
        product = low.to(tl.uint64) * _MULTIPLIER
        low = (product >> 32).to(tl.uint32) ^ key ^ high
        high = product.to(tl.uint32)
        key += _KEY_STEP
    return low, high


@triton.jit
def head_threshold(seed, head, threshold):
    """Threshold of a head: 8-bit draws below it drop their weight. ``threshold`` is p in units of 2**-16."""
    # no weight has this counter: no key has the number 2**32 - 1
    low, _ = philox((head | -1).to(tl.uint32), head.to(tl.uint32), seed)
    more = (low >> 24).to(tl.int32) < (threshold & 255)
    return tl.minimum((threshold >> 8) + more.to(tl.int32), 255)


@triton.jit
def dropped(seed, head, first_query, first_key, in_query, in_key, threshold):
    """Whether the weights of a tile are dropped; the same as ``dropped_reference`` in reference.py.

    ``first_query`` is a multiple of 16, ``first_key`` of 32 or, if ``in_key`` stays below 16, of 16. ``in_query`` and
    ``in_key`` count from them and broadcast to the tile. They are separate arguments so that the compiler sees which
    weights share an evaluation of Philox. ``threshold`` is that of the head.
    """
    high = ((in_query & ~8) + (first_query + (head << 16))).to(tl.uint32)
    low = ((in_key & ~24) + (first_key & ~24)).to(tl.uint32)
    high, low = tl.broadcast(high, low)
    low, high = philox(low, high, seed)
    word = tl.where(((in_key ^ first_key) & 16) == 0, low, high)
    # the byte that decides becomes the uppermost
    draw = word << ((in_query & 8) + 2 * (in_key & 8)).to(tl.uint32)
    return draw < (threshold << 24).to(tl.uint32)
