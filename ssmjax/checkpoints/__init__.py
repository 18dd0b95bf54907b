"""Checkpoints: `store` (training state, Orbax with checksums), `hub` (weights for people), `from_torch` (conversion).

The modules are imported by name, so that importing this package loads neither Orbax nor safetensors.
"""
