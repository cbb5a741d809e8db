"""The papers' equations in NumPy float64, written apart from the library: what its tests hold it to."""
