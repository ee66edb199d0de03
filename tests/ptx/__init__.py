"""Runs what NVRTC makes of the kernels, PTX, on NumPy arrays, and counts the instructions.

The emulator compiles the kernels' source; what a compiler for GPUs makes of it is run here, by a
reading of NVIDIA's "PTX ISA" that shares no code with it. Registers are arrays with an element for
each thread. All threads that are at one instruction execute it together, those of many blocks at
once, the lowest instruction first, and at a barrier or a shuffle all of its threads are waited for.
A `Fault` is raised for an access out of bounds or misaligned, a write into a read-only array, a
register that nothing has written, a barrier that not all threads reach, and an instruction that
nobody has taught it yet. Races are the emulator's affair.

====================  =============================================================
``program.py``        the text taken apart
``operands.py``       registers, numbers and addresses, read and written
``arithmetic.py``     what an instruction makes of its operands
``rounding.py``       sums, products and conversions that NumPy does not round so
``memory.py``         arrays, shared memory and parameters by address
``warps.py``          barriers, votes and shuffles
``machine.py``        which threads go on where; the count
``device.py``         the device that operators are run on
====================  =============================================================

Where the result of an instruction is not laid down to the bit, ``ex2.approx`` and its like, it is
rounded to the nearest. Counted are instructions of PTX: those of machine code are about as many,
not the same.
"""
