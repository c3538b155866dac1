"""A pseudo-random permutation that is evaluated where it is needed, instead of being built and kept.

Sources: a Feistel network and cycle walking (Black and Rogaway 2002, "Ciphers with Arbitrary Finite Domains"); mixing
constants of SplitMix64 (Steele et al. 2014).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

FEISTEL_ROUNDS = 4


def permute(index: NDArray[np.uint64], size: int, key: NDArray[np.uint64] | np.uint64) -> NDArray[np.uint64]:
    """A pseudo-random permutation of 0 … size - 1, evaluated at `index` without building it."""
    half = np.uint64(max(1, ((size - 1).bit_length() + 1) // 2))
    low = (np.uint64(1) << half) - np.uint64(1)
    keys = [mix(key ^ np.uint64(round_)) for round_ in range(FEISTEL_ROUNDS)]

    def encrypt(value: NDArray[np.uint64]) -> NDArray[np.uint64]:
        left, right = value >> half, value & low
        for round_key in keys:
            left, right = right, left ^ (mix(right ^ round_key) & low)
        return (left << half) | right

    value = encrypt(index)
    while (outside := value >= size).any():  # the network permutes a power of four: walk on to land inside
        value[outside] = encrypt(value[outside])
    return value


def permute_nearby(
    index: NDArray[np.uint64], size: int, block: int, blocks: int, key: NDArray[np.uint64]
) -> NDArray[np.uint64]:
    """A pseudo-random permutation of 0 … size - 1 for what should be read from few places at a time.

    Blocks of `block` consecutive numbers are permuted, and then, among each `blocks` of them (and what is left over,
    among the last), all the numbers. So it is a shuffle through a buffer of `block` times `blocks`, evaluated at
    `index` without building it; where there are not two buffers full, everything is permuted with everything.
    """
    group = block * blocks
    n_groups = size // group
    if n_groups < 2:
        return permute(index, size, key)
    groups = np.minimum(index // np.uint64(group), np.uint64(n_groups - 1))
    place = np.empty_like(index)  # among the blocks in their new order
    for number in np.unique(groups).tolist():
        start = number * group
        length = group if number < n_groups - 1 else size - start
        chosen = groups == number
        own = mix(key ^ mix(np.uint64(number + 1)))
        place[chosen] = permute(index[chosen] - np.uint64(start), length, own) + np.uint64(start)
    n_blocks = size // block
    slot, within = np.divmod(place, np.uint64(block))
    whole = slot < n_blocks  # the last block may not be: it stays where it is
    place[whole] = permute(slot[whole], n_blocks, mix(key)) * np.uint64(block) + within[whole]
    return place


def mix(value: NDArray[np.uint64] | np.uint64) -> NDArray[np.uint64]:
    """SplitMix64's finaliser: well-spread 64 bits from any 64 bits."""
    with np.errstate(over="ignore"):
        mixed = np.asarray(value, dtype=np.uint64) + np.uint64(0x9E3779B97F4A7C15)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return mixed ^ (mixed >> np.uint64(31))


def epoch_key(seed: int, epoch: int) -> NDArray[np.uint64]:
    """The key that everything random in one epoch of a run derives from."""
    return mix(np.uint64(seed) ^ mix(np.uint64(epoch)))
