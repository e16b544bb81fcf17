"""Which attention weights dropout keeps: a function of (seed, head, query, key), so forward and backward agree.

The random bits are Philox 2x32 with 7 rounds (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011). One
evaluation yields four draws of 16 bits. They serve the weights whose query and key differ in bit 3 only: in the
register layouts of tensor cores one thread holds all four of them, in the tile of the forward kernel as in the
transposed tile of the backward kernel, so the compiler evaluates the rounds once for four weights.
"""

import triton
import triton.language as tl

from cond_detr_kernels.conditional_attention.reference import PHILOX_KEY_STEP, PHILOX_MULTIPLIER, PHILOX_ROUNDS

_MULTIPLIER = tl.constexpr(PHILOX_MULTIPLIER)
_KEY_STEP = tl.constexpr(PHILOX_KEY_STEP)
_ROUNDS = tl.constexpr(PHILOX_ROUNDS)


@triton.jit
def dropped(seed, head, first_query, first_key, in_query, in_key, threshold):
    """Whether the weights of a tile are dropped; ``dropped_reference`` in reference.py says the same.

    ``first_query`` and ``first_key`` are multiples of 16. ``in_query`` and ``in_key`` count from them and broadcast to
    the tile; kept apart from where the tile begins, so that the compiler sees which weights share their draws.
    """
    high = ((in_query & ~8) + (first_query + (head << 16))).to(tl.uint32)
    low = ((in_key & ~8) + first_key).to(tl.uint32)
    high, low = tl.broadcast(high, low)
    key = seed.to(tl.uint32)
    for _ in tl.static_range(_ROUNDS):
        product = low.to(tl.uint64) * _MULTIPLIER
        low = (product >> 32).to(tl.uint32) ^ key ^ high
        high = product.to(tl.uint32)
        key += _KEY_STEP
    word = tl.where((in_query & 8) == 0, low, high)
    # one of the halves of the word becomes its upper half, which decides
    draw = tl.where((in_key & 8) == 0, word << 16, word)
    return draw < (threshold << 16).to(tl.uint32)
