"""Write the record of the kernels' machine code anew: python -m tests.gates"""

import sys

from rich.console import Console
from rich.progress import track

from . import table

missing = [wheel for wheel, version in table.compilers().items() if version is None]
if missing:
    sys.exit(f"not installed: pip install -c constraints.txt {' '.join(missing)}")
console = Console(stderr=True)
table.write(lambda results, count: track(results, "compiling", total=count, console=console))
print(f"wrote {table.PATH}; see what changed: git diff {table.PATH.name}")
