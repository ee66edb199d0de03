"""The operators on CuPy arrays: the host side of the kernels in ``kernels/``."""
