"""The papers' equations in NumPy float64, written independently of the library; its tests compare it with them."""
