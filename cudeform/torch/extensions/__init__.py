"""Stand-ins for the compiled modules of other projects, which then run unmodified.

`install` lets imports find them, `available` lists them; ``python -m cudeform run`` does it for a
program. Their functions, in the modules here, have the signatures of the originals.
"""

from cudeform.extensions import Extension, Installed, available, install

__all__ = ["Extension", "Installed", "available", "install"]
