"""What kernels are written in: vectors, how they are compiled, products, transpositions."""
