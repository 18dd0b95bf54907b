"""The published sizes of the language models, and small ones of ours; each with its exact number of parameters."""

from ssmjax.models.language_model import LanguageModelConfig
from ssmjax.models.registry import register_model

__all__: list[str] = []

_SIZES = {"130m": (768, 24), "370m": (1024, 48), "790m": (1536, 48), "1_4b": (2048, 48), "2_8b": (2560, 64)}
_SECOND = {"130m": (768, 24), "370m": (1024, 48), "780m": (1536, 48), "1_3b": (2048, 48), "2_7b": (2560, 64)}


def _register(name: str, **fields) -> None:
    register_model(name, "language_model", LanguageModelConfig(**fields))


# state-spaces/mamba-* (https://arxiv.org/abs/2312.00752, table 11) and mamba2-* (https://arxiv.org/abs/2405.21060).
for _name, (_d, _depth) in _SIZES.items():
    _register(f"mamba_{_name}", d_model=_d, depth=_depth)
for _name, (_d, _depth) in _SECOND.items():
    _register(f"mamba2_{_name}", mixer="mamba2", d_model=_d, depth=_depth, vocab_multiple=16)
_register(
    "mamba2_attention_2_7b",
    mixer="mamba2",
    d_model=2560,
    depth=64,
    vocab_multiple=16,
    attention_layers=(9, 18, 27, 36, 45, 56),
    attention_options={"heads": 30, "head_dim": 128, "d_conv": 4, "rotary_dim": 64},
)

# Mamba-3 (https://arxiv.org/abs/2603.15569) with the Llama-3 vocabulary. Depth, width and MLP follow from the published
# 187 M and 1.5 B; that of the MIMO model is narrower by what its ranks add, as the paper compares equal sizes.
_THIRD = dict(mixer="mamba3", vocab_size=128256, vocab_multiple=16)
_register("mamba3_187m", **_THIRD, d_model=768, depth=12, mlp_width=1536)
_register("mamba3_1_5b", **_THIRD, d_model=2048, depth=24, mlp_width=4096)
_register("mamba3_mimo_1_5b", **_THIRD, d_model=2048, depth=24, mlp_width=3840, mixer_options={"rank": 4})

# tiiuae/falcon-mamba-7b and mistralai/Mamba-Codestral-7B-v0.1.
_register(
    "falcon_mamba_7b",
    d_model=4096,
    depth=64,
    vocab_size=65024,
    vocab_multiple=1,
    tie_embeddings=False,
    mixer_options={"rms_eps": 1e-6},
)
_register(
    "mamba_codestral_7b",
    mixer="mamba2",
    d_model=4096,
    depth=64,
    vocab_size=32768,
    vocab_multiple=1,
    tie_embeddings=False,
    mixer_options={"groups": 8},
)

# Ours, for characters and for machines of two cores.
_NANO = dict(vocab_size=96, vocab_multiple=8, d_model=128, depth=4)
_register("mamba_nano", **_NANO)
_register("mamba2_nano", **_NANO, mixer="mamba2", mixer_options={"d_state": 32, "head_dim": 32, "chunk": 64})
_register("mamba3_nano", **_NANO, mixer="mamba3", mixer_options={"d_state": 32, "head_dim": 32})
_register("transformer_nano", **_NANO, mixer="attention", mixer_options={"heads": 4}, mlp_width=256)
