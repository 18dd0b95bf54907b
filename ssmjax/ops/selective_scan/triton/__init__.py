"""Kernels of the selective scan in Pallas Triton; `forward` and `backward` are a form of `xla.py`."""
