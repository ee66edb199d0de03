"""The operators on NumPy arrays: serial Numba kernels, shared out over one pool of threads."""
