"""Parity with the original implementations, from dumps of their weights, inputs, outputs and gradients.

`python -m tests.parity DIR` checks every dump in a folder; `families/` holds one module a group of families.
"""
