"""Wheels that a test cannot do without."""

import pytest
from backends import is_set
from gates import table

__all__ = ["wheels"]


def wheels(*names):
    """Skip the running test without these wheels, or fail it where CI must have them."""
    missing = [wheel for wheel in names if table.compilers()[wheel] is None]
    if not missing:
        return
    why = f"needs pip install -c constraints.txt {' '.join(missing)}"
    if not is_set("CI"):
        pytest.skip(why)
    pytest.fail(f"{why}, and CI is set", pytrace=False)
