"""One step of the scans of Mamba and Mamba-2."""

from ssmjax.ops.selective_state_update.api import selective_state_update

__all__ = ["selective_state_update"]
