"""Vision-language models with a learned token merge, built on ssmjax.

The package may import `ssmjax`; `ssmjax` never imports it.
"""

from ssmjax import __version__

__all__ = ["__version__"]
