"""What can be known of the kernels without a GPU: they compile, and what the machine code is like.

``resources.json`` is the committed record of it. After a change to a kernel, write it anew and
look at the difference before committing it::

    python -m tests.gates
"""
