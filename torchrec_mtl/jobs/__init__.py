"""The programs that TorchX components launch; each also runs by itself with ``python -m`` or torchrun."""
