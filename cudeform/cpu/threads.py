"""The number of threads: `cudeform.threads`, by the name that it had before."""

from cudeform.threads import get_num_threads, set_num_threads

__all__ = ["get_num_threads", "set_num_threads"]
