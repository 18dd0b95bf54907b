"""Tests of `ssmjax.ops`."""
