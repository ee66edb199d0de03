"""NumPy's arrays between guard pages, full of NaN until written, and failing on demand."""

import ctypes
import shutil
import subprocess
import tempfile
from contextlib import contextmanager
from pathlib import Path

import numpy as np

__all__ = ["Memory", "missing"]

SOURCE = Path(__file__).with_name("guarded.c")
_SET_HANDLER = 304  # the place of PyDataMem_SetHandler in NumPy's table of functions


def missing():
    """Why there is no such memory here, or None."""
    if compiler() is None:
        return "needs a C compiler"
    return None if hasattr(np, "_core") else "needs NumPy 2"


def compiler():
    return shutil.which("cc") or shutil.which("gcc")


class Memory:
    """The allocator of guarded.c."""

    def __init__(self):
        with tempfile.TemporaryDirectory() as folder:
            library = str(Path(folder) / "guarded.so")
            command = [compiler(), "-O1", "-shared", "-fPIC", str(SOURCE), "-o", library]
            subprocess.run(command, check=True)
            self._library = ctypes.CDLL(library)
        table = _capsule_pointer(np._core._multiarray_umath._ARRAY_API, None)
        address = ctypes.cast(table, ctypes.POINTER(ctypes.c_void_p))[_SET_HANDLER]
        self._set = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.py_object)(address)
        handler = ctypes.addressof(ctypes.c_char.in_dll(self._library, "handler"))
        self._name = ctypes.create_string_buffer(b"mem_handler")
        self._handler = _new_capsule(handler, ctypes.addressof(self._name), None)

    @contextmanager
    def active(self):
        """Arrays that this thread makes meanwhile are of this memory."""
        before = self._set(self._handler)
        try:
            assert np._core.multiarray.get_handler_name() == "guarded"
            yield self
        finally:
            self._set(before)

    @contextmanager
    def failing(self, after):
        """The allocation after so many others fails."""
        self._library.fail_after(ctypes.c_long(after))
        try:
            yield
        finally:
            self._library.fail_after(ctypes.c_long(-1))

    def damaged(self):
        """Arrays, of those freed so far, around which something was written."""
        return self._library.count_damaged()


def _function(name, result, *arguments):
    return ctypes.PYFUNCTYPE(result, *arguments)((name, ctypes.pythonapi))


_capsule_pointer = _function(
    "PyCapsule_GetPointer", ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p
)
_new_capsule = _function(
    "PyCapsule_New", ctypes.py_object, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p
)
