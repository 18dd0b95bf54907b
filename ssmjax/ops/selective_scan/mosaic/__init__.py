"""Kernels of the selective scan for Hopper GPUs, in Pallas Mosaic GPU.

`plan` says how a call is cut up and loads no Pallas; `forward` and `backward` are the kernels, `parts` what they share.
"""
