collect_ignore = [
    "deepctr_torch_reference.py",
    "libmtl_reference.py",
    "torch_rechub_reference.py",
]  # they run where the peers are installed
