"""The operators on NumPy arrays: serial Numba kernels over tiles, shared out by one pool of threads."""
