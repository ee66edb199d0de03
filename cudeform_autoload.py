"""What `import torch` calls, by the entry point "torch.backends": torch.ops.cudeform is defined.

But only where cudeform has been imported before; `import cudeform` does the same where torch has.
A file beside the package, so that nobody who imports torch alone waits for more than these lines.
"""

import sys


def define() -> None:
    cudeform = sys.modules.get("cudeform")
    if hasattr(cudeform, "__version__"):  # else it is being imported, and will see torch itself
        cudeform.dispatch.define()
