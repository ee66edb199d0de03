"""What kernels load and store: the arrays of a launch, its parameters, the memory of blocks.

Arrays have the addresses that they have in this process, so that what is aligned here is aligned
there.
"""

import ctypes
from collections.abc import Iterator
from typing import Any

import numpy as np

from .program import Fault

__all__ = ["PARAMETERS", "SHARED", "Memory", "Segment"]

PARAMETERS = 1 << 60  # where a launch's parameters begin
SHARED = 1 << 61  # where a block's memory does, for instructions that do not say which memory
WORD = 16  # bytes of the longest access
EVERYTHING = ...
POISON = 0xFF


class Segment:
    """Memory from an address on."""

    def __init__(self, memory: np.ndarray, first: int, start: int, nbytes: int, writable: bool):
        self._memory = memory  # of bytes, whole words from the address `first` on
        self._first = first
        self.start, self.end = start, start + nbytes  # what a kernel may reach
        self.writable = writable

    @classmethod
    def of_array(cls, array: np.ndarray) -> "Segment":
        """An array where it is, with the words that its ends lie in."""
        start = array.ctypes.data
        first = start // WORD * WORD
        words = -(-(start + array.nbytes - first) // WORD)
        memory = (ctypes.c_uint8 * (words * WORD)).from_address(first)
        writable = array.flags.writeable
        return cls(np.frombuffer(memory, np.uint8), first, start, array.nbytes, writable)

    @classmethod
    def of_bytes(cls, content: bytes, start: int) -> "Segment":
        """A copy of bytes, to be read."""
        memory = np.zeros(-(-len(content) // WORD) * WORD, np.uint8)
        memory[: len(content)] = np.frombuffer(content, np.uint8)
        return cls(memory, start, start, len(content), False)

    def elements(self, addresses: Any, dtype: np.dtype) -> tuple[np.ndarray, Any]:
        """The memory as numbers, and which of them are at some addresses."""
        return self._memory.view(dtype), (addresses - self._first) // dtype.itemsize


class Memory:
    """All that a launch's threads can reach; the blocks' memory is that of `blocks` at a time."""

    def __init__(self, arrays: Any, parameters: bytes, shared_bytes: int):
        given = [array for array in arrays if array is not None and array.nbytes]
        self._arrays = [Segment.of_array(array) for array in given]
        self._parameters = [Segment.of_bytes(parameters, PARAMETERS)]
        self._shared_bytes = shared_bytes
        self._stride = -(-shared_bytes // WORD) * WORD
        self._shared: list[Segment] = []

    def begin(self, blocks: int) -> None:
        """Memory for the next blocks, which nothing has written."""
        memory = np.full(blocks * self._stride, POISON, np.uint8)
        self._shared = [Segment(memory, 0, 0, memory.size, True)]

    def places(
        self,
        space: str,
        addresses: Any,
        block: Any,
        dtype: np.dtype,
        count: int = 1,
        write: bool = False,
    ) -> Iterator[tuple[np.ndarray, Any, Any]]:
        """The memory as numbers, which of them are meant, and by which of the threads.

        `space` is "global", "shared", "param", or "" where the address tells; `block` is the number
        of each thread's block.
        """
        nbytes = dtype.itemsize * count
        if (addresses & (nbytes - 1)).any():
            raise Fault(f"misaligned: no multiple of {nbytes} bytes")
        if space == "":
            shared = addresses >= SHARED
            if shared.all():
                space, addresses = "shared", addresses - SHARED
            elif shared.any():
                raise Fault("threads reach for different memories at once")
        if space == "shared":
            if (addresses < 0).any() or (addresses + nbytes > self._shared_bytes).any():
                raise Fault(
                    f"out of bounds: a block has {self._shared_bytes} bytes of shared memory"
                )
            yield (*self._shared[0].elements(addresses + block * self._stride, dtype), EVERYTHING)
            return
        segments = self._parameters if space == "param" else self._arrays
        for segment, chosen in _split(segments, addresses, nbytes):
            if write and not segment.writable:
                raise Fault("a write into a read-only array")
            yield (*segment.elements(addresses[chosen], dtype), chosen)


def _split(segments: list[Segment], addresses: Any, nbytes: int) -> Iterator[tuple[Segment, Any]]:
    """Which segments addresses are in."""
    lowest, highest = addresses.min(), addresses.max() + nbytes
    for segment in segments:
        if segment.start <= lowest and highest <= segment.end:
            yield segment, EVERYTHING
            return
    left = np.ones(addresses.shape, bool)
    for segment in segments:
        inside = left & (segment.start <= addresses) & (addresses + nbytes <= segment.end)
        if inside.any():
            yield segment, np.nonzero(inside)[0]
            left &= ~inside
    if left.any():
        raise Fault(f"out of bounds: {np.count_nonzero(left)} threads are in no array")
