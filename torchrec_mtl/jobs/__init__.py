"""The jobs behind ``torchrec-mtl JOB`` and the TorchX components; `train`, `compare` and `prepare` are one each."""
