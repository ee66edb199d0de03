"""The array: what CuPy's has of NumPy's that the library uses, and nothing that CuPy's has not.

Everything that reads or writes elements is work for the current stream.
"""

import math
import operator

import numpy as np

from ._memory import MemoryPointer
from .cuda import memory, runtime
from .cuda.device import Device
from .cuda.stream import capturing, enqueue, synchronize_current


class Flags:
    def __init__(self, host):
        self.c_contiguous = host.flags.c_contiguous
        self.f_contiguous = host.flags.f_contiguous
        self.owndata = host.base is None


class ndarray:
    """`host` shares the memory; its elements mean something only when the stream got there."""

    __array_ufunc__ = None  # NumPy's arrays and scalars leave arithmetic to this class

    def __init__(self, mem, host):
        self._mem = mem
        self.host = host
        self.shape, self.strides, self.dtype = host.shape, host.strides, host.dtype
        self.ndim, self.size, self.itemsize, self.nbytes = (
            host.ndim,
            host.size,
            host.itemsize,
            host.nbytes,
        )

    @property
    def flags(self):
        return Flags(self.host)

    @property
    def data(self):
        return MemoryPointer(self._mem, self.host.data.ptr - self._mem.ptr)

    @property
    def device(self):
        return Device(self._mem.device_id)

    @property
    def T(self):
        return self.transpose()

    def _view(self, host):
        return ndarray(self._mem, host)

    def view(self, dtype):
        return self._view(self.host.view(dtype))

    def reshape(self, *shape, order="C"):
        shape = shape[0] if len(shape) == 1 and not isinstance(shape[0], int) else shape
        try:
            return self._view(np.reshape(self.host, shape, order=order, copy=False))
        except ValueError:
            return self._view(np.reshape(self.copy().host, shape, order=order, copy=False))

    def ravel(self, order="C"):
        return self.reshape(-1)

    def transpose(self, *axes):
        return self._view(self.host.transpose(*axes))

    def swapaxes(self, axis1, axis2):
        return self._view(self.host.swapaxes(axis1, axis2))

    def __len__(self):
        return len(self.host)

    def __getitem__(self, index):
        return self._view(self.host[_basic(index)])

    def __setitem__(self, index, value):
        target = self.host[_basic(index)]
        source = _operand(value)
        self._check_device()
        enqueue(lambda: target.__setitem__(..., source))

    def fill(self, value):
        self[...] = value

    def copy(self, order="C"):
        return apply(lambda host: np.array(host, order=order), self)

    def astype(self, dtype, order="K", casting=None, subok=None, copy=True):
        dtype = np.dtype(dtype)
        return self if dtype == self.dtype and not copy else apply(lambda h: h.astype(dtype), self)

    def get(self, stream=None, order="C", out=None, blocking=True):
        with self.device:
            if capturing():
                raise runtime.CUDARuntimeError("cudaErrorStreamCaptureUnsupported", "a copy")
            synchronize_current()
        return np.array(self.host)

    def set(self, arr):
        if type(arr) is not np.ndarray or arr.dtype != self.dtype or arr.shape != self.shape:
            raise ValueError(f"cannot set {self.dtype} {self.shape}")
        self._check_device()
        if capturing():
            raise runtime.CUDARuntimeError("cudaErrorStreamCaptureUnsupported", "a copy")
        source = arr.copy()
        enqueue(lambda: self.host.__setitem__(..., source))

    def _check_device(self):
        here = runtime.getDevice()
        if self._mem.device_id != here:
            raise ValueError(
                f"The device where the array resides ({self._mem.device_id}) is different from the "
                f"current device ({here}). Peer access is unavailable between these devices."
            )

    def __array__(self, *args, **kwargs):
        raise TypeError(
            "Implicit conversion to a NumPy array is not allowed. Please use `.get()` to construct "
            "a NumPy array explicitly."
        )

    def __bool__(self):
        return bool(self.get())

    def __float__(self):
        return float(self.get())

    def __dlpack_device__(self):
        return 2, self._mem.device_id

    def __dlpack__(self, **how):
        return self  # no capsule: only this module's `from_dlpack` takes it


def _basic(index):
    """An index that makes a view, also of a single element."""
    index = index if isinstance(index, tuple) else (index,)
    if any(isinstance(part, (np.ndarray, ndarray, list)) for part in index):
        raise NotImplementedError("an index by arrays")
    return index if Ellipsis in index else (*index, ...)


def _operand(value):
    """What a kernel reads: an array of this device, or a number."""
    if isinstance(value, ndarray):
        value._check_device()
        return value.host
    if isinstance(value, np.ndarray):
        raise TypeError(f"Unsupported type {type(value)}")
    return value


def apply(function, *operands):
    """A new array function(*operands), computed when the current stream gets there."""
    given = [_operand(value) for value in operands]
    like = function(*[np.ones_like(x) if isinstance(x, np.ndarray) else x for x in given])
    result = empty(like.shape, like.dtype)
    enqueue(lambda: result.host.__setitem__(..., function(*given)))
    return result


def _arithmetic(name):
    function = getattr(operator, name)

    def forward(self, other):
        return apply(function, self, other)

    def backward(self, other):
        return apply(function, other, self)

    return forward, backward


for _name in ("add", "sub", "mul", "truediv"):
    for _mark, _method in zip(("", "r"), _arithmetic(_name), strict=True):
        setattr(ndarray, f"__{_mark}{_name}__", _method)
for _name in ("lt", "le", "gt", "ge", "eq", "ne"):
    setattr(ndarray, f"__{_name}__", _arithmetic(_name)[0])
ndarray.__hash__ = None


def _supported(dtype):
    dtype = np.dtype(dtype)
    if not dtype.isnative or (dtype.char not in "?bhilqBHILQefdFD" and dtype.name != "bfloat16"):
        raise ValueError(f"Unsupported dtype {dtype}")
    return dtype


def empty(shape, dtype=float, order="C"):
    shape = (shape,) if isinstance(shape, int) else tuple(map(operator.index, shape))
    dtype = _supported(dtype)
    mem = memory.alloc(math.prod(shape) * dtype.itemsize).mem
    return ndarray(mem, mem.bytes.view(dtype).reshape(shape))


def zeros(shape, dtype=float, order="C"):
    result = empty(shape, dtype)
    result.fill(0)
    return result


def zeros_like(a):
    return zeros(a.shape, a.dtype)


def ones_like(a):
    result = empty(a.shape, a.dtype)
    result.fill(1)
    return result


def asarray(a, dtype=None, order=None):
    if isinstance(a, ndarray):
        return a if dtype is None else a.astype(dtype, copy=False)
    source = np.asarray(a, dtype)
    result = empty(source.shape, source.dtype)
    result.set(source)
    return result


def asnumpy(a, stream=None, order="C", out=None):
    return a.get() if isinstance(a, ndarray) else np.asarray(a)


def from_dlpack(array, device=None, copy=None):
    found = array.__dlpack__()
    if not isinstance(found, ndarray):
        raise BufferError("no memory of these devices")
    return found[...]


def moveaxis(a, source, destination):
    return a._view(np.moveaxis(a.host, source, destination))


def swapaxes(a, axis1, axis2):
    return a.swapaxes(axis1, axis2)


def flip(m, axis=None):
    return m._view(np.flip(m.host, axis))


def concatenate(tup, axis=0):
    return apply(lambda *parts: np.concatenate(parts, axis), *tup)


def tile(A, reps):
    return apply(lambda a: np.tile(a, reps), A)


def clip(a, a_min=None, a_max=None):
    return apply(lambda x: np.clip(x, a_min, a_max), a)


def abs(x):
    return apply(np.abs, x)


def floor(x):
    return apply(np.floor, x)


def copysign(x1, x2):
    return apply(np.copysign, x1, x2)
