"""The named sizes of the sequence classifiers: those of the papers, and small ones.

The sizes of S4 are those of its repository's configurations, of S5 those of its paper's tables 11 and 12.
"""

from collections.abc import Mapping
from typing import Any

from ssmjax.models.registry import register_model
from ssmjax.models.sequence_classifier import SequenceConfig, SequenceRegressorConfig

__all__ = ["PRESETS"]

_S4 = {"layer": "s4", "layer_options": {"copies": 1, "dt_transform": "softplus"}, "l_max": 1024}
_S4_LRA = {**_S4, "bidirectional": "exclusive", "d_model": 256, "depth": 6, "norm": "batch", "bn_unbiased": True}
_S4_TEXT = {**_S4_LRA, "d_state": 4, "encoder_bias": False}
_POSTNORM = {"prenorm": False, "final_norm": False}
_S4_IMAGE = {**_S4_LRA, **_POSTNORM, "d_model": 512, "dropout": 0.1}
_S4_CIFAR = {**_S4_IMAGE, "norm": "layer", "in_features": 3}
_PATHFINDER = {**_S4_LRA, "num_classes": 2, "layer_options": {"dt_transform": "softplus"}}

_S5 = {"layer": "s5", "gate": "half_glu1", "gelu": "tanh", "norm": "batch", "bn_momentum": 0.95, "final_norm": False}
_S5_LRA = {**_S5, "bidirectional": "inclusive", "depth": 6}


def _s5(d_model: int, d_state: int, blocks: int, c_init: str, **fields: Any) -> dict[str, Any]:
    options = {"blocks": blocks, "c_init": c_init} | fields.pop("layer_options", {})
    return {**_S5_LRA, "d_model": d_model, "d_state": d_state, "layer_options": options, **fields}


_LECUN, _TRUNC = "lecun_normal", "trunc_standard_normal"

PRESETS: Mapping[str, Mapping[str, Any]] = {
    "s4_classifier": _S4,
    "s4_classifier_listops": {**_S4_TEXT, **_POSTNORM, "vocab_size": 18, "l_max": 2048},
    "s4_classifier_text": {**_S4_TEXT, "vocab_size": 135, "num_classes": 2, "l_max": 4096},
    "s4_classifier_retrieval": {**_S4_TEXT, "vocab_size": 98, "num_classes": 2, "l_max": 4000, "documents": 2},
    "s4_classifier_image": _S4_IMAGE,
    "s4_classifier_pathfinder": _PATHFINDER,
    "s4_classifier_pathx": {
        **_PATHFINDER,
        "l_max": 16384,
        "layer_options": {"dt_transform": "softplus", "dt_min": 1e-4},
    },
    "s4_classifier_scifar": {**_S4_CIFAR, "layer_options": {"copies": 2, "dt_transform": "softplus"}},
    "s4_classifier_scifar_ablation": {**_S4_CIFAR, "d_model": 128, "depth": 4, "gate": "linear"},
    "s4_classifier_speech": {
        **_S4_LRA,
        "d_model": 128,
        "num_classes": 35,
        "layer_options": {"copies": 2, "dt_transform": "softplus"},
        "l_max": 16000,
    },
    "s4d_classifier": {"layer": "s4d", "layer_options": {"init": "diag-lin"}},
    "dss_classifier": {"layer": "dss", "gate": "linear"},
    "s4nd_classifier": {
        "layer": "s4nd",
        "layer_options": {"copies": 1},
        "bidirectional": "exclusive",
        "d_model": 512,
        "depth": 6,
        "in_features": 3,
        "dropout": 0.1,
    },
    "s5_classifier": _S5 | {"layer_options": {"blocks": 8}, "depth": 6, "d_state": 256},
    "s5_classifier_listops": _s5(128, 16, 8, _LECUN, depth=8, gate="half_glu2", vocab_size=20),
    "s5_classifier_text": _s5(256, 192, 12, _LECUN, gate="half_glu2", vocab_size=135, num_classes=2, dropout=0.1),
    "s5_classifier_retrieval": _s5(128, 256, 16, _TRUNC, vocab_size=98, num_classes=2, documents=2),
    "s5_classifier_image": _s5(512, 384, 3, _LECUN, dropout=0.1),
    "s5_classifier_pathfinder": _s5(192, 256, 8, _TRUNC, num_classes=2, dropout=0.05, bn_momentum=0.9),
    "s5_classifier_pathx": _s5(
        128, 256, 16, "complex_normal", num_classes=2, bn_momentum=0.9, layer_options={"dt_min": 1e-4}
    ),
    "s5_classifier_speech": _s5(96, 128, 16, _LECUN, num_classes=35, dropout=0.1),
    "lru_classifier": {
        "layer": "lru",
        "gate": "full_glu",
        "layer_options": {"r_min": 0.9, "r_max": 0.999},
        "d_state": 128,
    },
}
"""Fields of `SequenceConfig` by the name of the model."""

_NANO = {"d_model": 32, "depth": 2, "d_state": 16}
_REGRESSION = {"gate": "glu", "gelu": "exact", "norm": "layer"}

for _name, _fields in PRESETS.items():
    register_model(_name, "sequence_classifier", SequenceConfig(**_fields))
for _layer in ("s4", "s4d", "dss", "s4nd", "s5", "lru"):
    _fields = {**PRESETS[f"{_layer}_classifier"], **_NANO}
    register_model(f"{_layer}_classifier_nano", "sequence_classifier", SequenceConfig(**_fields))
    if _layer != "s4nd":
        _name = f"{_layer}_regressor"
        register_model(
            _name, "sequence_regressor", SequenceRegressorConfig(**{**PRESETS[f"{_layer}_classifier"], **_REGRESSION})
        )
