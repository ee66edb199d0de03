"""What `import torch` calls, by the entry point "torch.backends".

It defines torch.ops.cudeform, but only where cudeform has been imported before; `import cudeform`
does the same where torch has. And it installs stand-ins for compiled modules, but only in a process
that `python -m cudeform run` started, however far down. A file beside the package, so that nobody
who imports torch alone waits for more than these lines.
"""

import os
import sys


def define() -> None:
    cudeform = sys.modules.get("cudeform")
    if hasattr(cudeform, "__version__"):  # else it is being imported, and will see torch itself
        cudeform.dispatch.define()
    if os.environ.get("CUDEFORM_EXTENSIONS"):
        from cudeform.extensions import install_as_told

        install_as_told()
