"""What a checkpoint remembers of the model's configuration, and what a model that goes on from it may change."""

import dataclasses
import json
import logging
from collections.abc import Mapping
from typing import Any

__all__ = ["check_settings", "model_settings"]

logger = logging.getLogger(__name__)


def model_settings(model: Any) -> dict[str, Any]:
    """What a checkpoint remembers of a model's configuration: its fields, and what its parameters are made for.

    Args:
        model: Any model; one without a `config` that is a dataclass has no settings.

    >>> model_settings(object())
    {}
    """
    config = getattr(model, "config", None)
    if not dataclasses.is_dataclass(config) or isinstance(config, type):
        return {}
    made_for = getattr(config, "parameters_depend_on", {})
    return json.loads(json.dumps({"config": dataclasses.asdict(config), "made_for": made_for}, default=str))


def check_settings(where: str, stored: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """Compares the settings of a checkpoint's model with those of the model that goes on from it.

    Equal shapes do not make an equal model: parameters that were trained with one discretization would go on with
    another. That is refused; any other difference is said once, in the log.

    Args:
        where: The folder of the checkpoints.
        stored: The settings that the checkpoint holds; empty if it holds none.
        settings: Those of the model, from `model_settings`.

    Raises:
        ValueError: The parameters were made for another value of a setting.

    >>> check_settings("run", {}, {"config": {"depth": 2}, "made_for": {}})
    """
    if not stored or stored == settings:
        return
    for kind in ("made_for", "config"):
        there, here = stored.get(kind, {}), settings.get(kind, {})
        names = sorted(name for name in there.keys() | here.keys() if there.get(name) != here.get(name))
        pairs = "; ".join(f"{name}: {there.get(name)!r} there, {here.get(name)!r} now" for name in names)
        if names and kind == "made_for":
            raise ValueError(
                f"fit: the parameters in {where} are made for another model ({pairs}). Create the model as it was, use "
                "another folder, or start anew with `fresh=True` (on the command line, `--no-resume`)."
            )
        if names:
            logger.warning("The model that goes on in %s has other settings than its checkpoint: %s.", where, pairs)
