"""A pseudo-random permutation that is evaluated where it is needed, instead of being built and kept.

Sources: a Feistel network and cycle walking (Black and Rogaway 2002, "Ciphers with Arbitrary Finite Domains"); mixing
constants of SplitMix64 (Steele et al. 2014).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FEISTEL_ROUNDS = 4
GOLDEN = 0x9E3779B97F4A7C15  # SplitMix64's step, 2^64 divided by the golden ratio
FIRST, SECOND = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB  # its factors


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


@dataclass(frozen=True)
class Nearby:
    """Permutations of 0 … size - 1 for what should be read from few places at a time.

    Blocks of `block` consecutive numbers are permuted, and then, among each group of `blocks` of them (what is left
    over belongs to the last), all the numbers: a shuffle through a buffer of `block` times `blocks`, evaluated where it
    is needed. Where there are not two buffers full, everything is permuted with everything.
    """

    size: int
    block: int
    blocks: int

    @property
    def n_groups(self) -> int:
        return max(1, self.size // (self.block * self.blocks))

    def order(self, index: NDArray[np.uint64], key: NDArray[np.uint64]) -> NDArray[np.uint64]:
        """What comes at each `index`."""
        if self.n_groups == 1:
            return permute(index, self.size, key)
        groups = self.group_of(index)
        place = np.empty_like(index)  # among the blocks in their new order
        for group in np.unique(groups).tolist():
            start, stop = self._slots(group)
            chosen, own = groups == group, mix(key ^ mix(np.uint64(group + 1)))
            place[chosen] = permute(index[chosen] - np.uint64(start), stop - start, own) + np.uint64(start)
        slot, within = np.divmod(place, np.uint64(self.block))
        return self._block_at(slot, key) * np.uint64(self.block) + within

    def group_of(self, index: NDArray[np.uint64]) -> NDArray[np.uint64]:
        return np.minimum(index // np.uint64(self.block * self.blocks), np.uint64(self.n_groups - 1))

    def blocks_of(self, group: int, key: NDArray[np.uint64]) -> NDArray[np.uint64]:
        """The blocks that a group draws from; of the last one, some of the numbers may be beyond the end."""
        start, stop = self._slots(group)
        return self._block_at(np.arange(start // self.block, -(-stop // self.block), dtype=np.uint64), key)

    def _slots(self, group: int) -> tuple[int, int]:
        start = group * self.block * self.blocks
        return start, start + self.block * self.blocks if group < self.n_groups - 1 else self.size

    def _block_at(self, slot: NDArray[np.uint64], key: NDArray[np.uint64]) -> NDArray[np.uint64]:
        """The block at each place in their new order; one that is not whole stays at the end."""
        n_blocks = self.size // self.block
        whole, block = slot < n_blocks, slot.copy()
        block[whole] = permute(slot[whole], n_blocks, mix(key))
        return block


def mix(value: NDArray[np.uint64] | np.uint64) -> NDArray[np.uint64]:
    """SplitMix64's finaliser: well-spread 64 bits from any 64 bits."""
    with np.errstate(over="ignore"):
        mixed = np.asarray(value, dtype=np.uint64) + np.uint64(GOLDEN)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(FIRST)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(SECOND)
        return mixed ^ (mixed >> np.uint64(31))


def epoch_key(seed: int, epoch: int) -> NDArray[np.uint64]:
    """The key that everything random in one epoch of a run derives from."""
    return mix(np.uint64(seed) ^ mix(np.uint64(epoch)))
