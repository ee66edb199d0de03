"""The same values in memory of any kind: what a caller may hand over."""

import numpy as np

__all__ = ["STYLES", "Dresser"]

STYLES = (
    "plain",
    "every second",
    "backwards",
    "other order",
    "off the grid",
    "read-only",
    "repeated",
    "within another",
)


class Dresser:
    """A backend whose `to_device` dresses each array in a random style, and remembers it."""

    def __init__(self, backend, rng=None):
        self.backend = backend
        self.rng = rng
        self.made = []  # (array, its memory, the bytes of both)
        self.to_host = backend.to_host

    def to_device(self, array):
        style = "plain" if self.rng is None else STYLES[self.rng.integers(len(STYLES))]
        whole, view = self._dressed(array, style)
        self.made.append((view, whole, view.tobytes(), whole.tobytes()))
        return view

    def unchanged(self):
        """Whether all arrays, and what lies between their elements, are as they were made."""
        return all(
            view.tobytes() == seen and whole.tobytes() == all_of_it
            for view, whole, seen, all_of_it in self.made
        )

    def _dressed(self, array, style):
        """An array that owns memory, and a view of it that has the values."""
        move = self.backend.to_device
        if style == "within another":
            for earlier, whole, _, _ in self.made:
                found = _part(earlier, array)
                if found is not None:
                    return whole, found
        if style == "every second" and array.ndim:
            whole = move(np.repeat(array, 2, axis=-1))
            return whole, whole[..., ::2]
        if style == "backwards" and array.ndim:
            whole = move(np.ascontiguousarray(np.flip(array)))
            return whole, whole[(slice(None, None, -1),) * array.ndim]
        if style == "other order":
            whole = move(np.ascontiguousarray(array.T))
            return whole, whole.T
        if style == "off the grid":
            whole = move(np.concatenate([np.zeros(1, array.dtype), array.ravel()]))
            return whole, whole[1:].reshape(array.shape)
        if style == "repeated" and len(array) > 1 and _equal(array, array[:1]):
            whole = move(np.ascontiguousarray(array[:1]))
            return whole, np.broadcast_to(whole, array.shape, subok=True)
        whole = move(array.copy())
        if style == "read-only":
            whole.flags.writeable = False
        return whole, whole


def _equal(a, b):
    return bool((a == b).all())


def _part(earlier, array):
    """The view of an earlier array that has the values of another, or None."""
    if earlier.dtype != array.dtype or earlier.ndim != array.ndim or array.ndim < 2:
        return None
    part = earlier[:, : array.shape[1]]
    if part.shape != array.shape or not _equal(np.asarray(part), array):
        return None
    return part
