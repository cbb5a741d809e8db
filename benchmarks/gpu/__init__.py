"""What runs on a GPU: all benchmarks, first figures, and compiling ahead. Not yet run on a GPU."""
