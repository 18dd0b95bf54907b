"""Which of the registered models the default tests look at: one of each kind; slow tests look at its other sizes."""

import dataclasses

import ssmjax
from ssmjax.models import registry

__all__ = ["DISTINCT", "FIRST", "NAMES", "OTHERS"]

NAMES = [
    name
    for name in ssmjax.list_models()
    if registry.get_family(registry.family_of(ssmjax.model_config(name))).package == "ssmjax"
]
"""Those of this package; an import of another one, in another test, adds names."""


def _distinct_when_tiny() -> list[str]:
    """One name for each configuration that is left when sizes are made tiny: equal ones would be tested twice."""
    configs: dict[object, str] = {}
    for name in NAMES:
        config = ssmjax.model_config(name)
        configs.setdefault(dataclasses.replace(config, **registry.get_family(registry.family_of(config)).tiny), name)
    return list(configs.values())


DISTINCT = _distinct_when_tiny()
OTHERS = [name for name in NAMES if name not in DISTINCT]
FIRST = list({registry.family_of(ssmjax.model_config(name)): name for name in reversed(DISTINCT)}.values())
"""One model of each family."""
