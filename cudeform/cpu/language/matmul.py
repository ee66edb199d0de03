"""Products of small matrices in the cache, on one thread, with the same bytes every time.

Not BLAS: its threads would compete with ours for the cores, their number cannot be set for one
caller alone, and its sums may depend on it. At the size of a tile this is as fast.
"""

from __future__ import annotations

from cudeform.cpu.language.compiler import inlined, inner
from cudeform.cpu.language.simd import (
    add_low_product,
    add_product,
    block_columns,
    block_rows,
    low_rows,
)


@inlined
def rows_of(like, count):
    """`count` rounded up to whole blocks of rows: as far as `multiply` reads and writes."""
    block = block_rows(like)
    return (count + block - 1) // block * block


@inlined
def columns_of(like, count):
    """`count` rounded up to whole blocks of columns: what `multiply` reads and writes."""
    block = block_columns(like)
    return (count + block - 1) // block * block


@inner
def multiply(a, a_layout, b, b_layout, c, c_layout, size, fresh):
    """c[c_at + i*c_row + j] += sum over k of a[a_at + i*a_row + k*a_step] * b(k, j); = if `fresh`.

    `a_layout` is (a_at, a_row, a_step) and `c_layout` (c_at, c_row). `b_layout` is (b_at, b_step,
    b_panel): b(k, j) stands at b_at + (j // block)*b_panel + k*b_step + j % block. `size` is (rows,
    columns, depth); the columns are whole blocks, and rows up to `rows_of` them must be there.
    """
    a_at, a_row, a_step = a_layout
    b_at, b_step, b_panel = b_layout
    c_at, c_row = c_layout
    rows, columns, depth = size
    across = block_columns(a)
    down, few = block_rows(a), low_rows(a)
    whole = (rows + few - 1) // down * down  # a block once more where nearly all of one is left
    for j in range(0, columns, across):  # a panel of b stays in the cache for all rows
        panel = b_at + j // across * b_panel
        for i in range(0, whole, down):
            to, row = c_at + i * c_row + j, a_at + i * a_row
            add_product(a, row, a_row, a_step, b, panel, b_step, c, to, c_row, depth, fresh)
        for i in range(whole, rows, few):
            to, row = c_at + i * c_row + j, a_at + i * a_row
            add_low_product(a, row, a_row, a_step, b, panel, b_step, c, to, c_row, depth, fresh)
