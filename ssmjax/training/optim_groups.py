"""The parameter groups of S4 and of S5, as data for `adamw(groups=...)`.

Parameters that say what they are belong to a group by their kind, others by their name.

Both give the state space's own parameters a small learning rate and no weight decay; they differ in which these are.
"""

from collections.abc import Mapping

from ssmjax.errors import as_nonnegative, require_flags, unknown_name
from ssmjax.training.optim import ParameterGroup

__all__ = ["S5_MODES", "s4_groups", "s5_groups"]

_S4_STEP = r"(inv|log)_dt"
_S4_STATE = r"A_real|A_imag|B|P|W|Lambda|Lambda_(log_neg_re|im|log_im)|log_A_real"
_S5_SPECTRUM = r"Lambda_re|Lambda_im|nu_log|theta_log|gamma_log"
_S5_STEP = r"log_step"
_S5_INPUT = r"B|B_re|B_im"
_S5_OUTPUT = r"C[12]?|C[12]?_(re|im)"
_S5_SKIP = r"D"

S5_MODES = ("standard", "BandCdecay", "BfastandCdecay", "noBCdecay")
"""The names of S5's `opt_config`."""


def s4_groups(
    state_rate: float = 1e-3,
    *,
    step_rate: float | None = None,
    output_rate: float | None = None,
    weight_decay: float = 0.05,
    global_rate: float | None = None,
) -> tuple[ParameterGroup, ...]:
    """S4's convention: A, B, P and dt (and DSS's Lambda and W) have a learning rate of their own and no weight decay.

    C has the global learning rate and weight decay, as all else but norms and biases, which `adamw` never decays.

    Args:
        state_rate: The peak learning rate of A, B and P.
        step_rate: That of dt; `state_rate` by default. The text tasks of Long Range Arena use the global one.
        output_rate: That of C, with weight decay 0: a single number `lr` in S4's configurations applies to C too. None
            leaves C to the global rate.
        weight_decay: That of D, with a `global_rate`.
        global_rate: If given, D has this rate and `weight_decay`, as in the original. None leaves it to `adamw`, which
            does not decay it.

    Returns:
        The groups, for `adamw(groups=...)`.

    Raises:
        ValueError: A rate is not a finite number, or it is negative.

    >>> [group.peak for group in s4_groups(1e-3, step_rate=1e-2)]
    [0.01, 0.001]
    """
    given = {"step_rate": step_rate, "output_rate": output_rate, "global_rate": global_rate}
    _check("s4_groups", given, state_rate=state_rate, weight_decay=weight_decay)
    groups = (
        ParameterGroup(_S4_STEP, state_rate if step_rate is None else step_rate, kinds=("dt",)),
        ParameterGroup(_S4_STATE, state_rate, kinds=("A", "B", "P")),
    )
    groups += () if output_rate is None else (ParameterGroup("C", output_rate, kinds=("C",)),)
    return groups if global_rate is None else (*groups, ParameterGroup("D", global_rate, weight_decay, kinds=("D",)))


def s5_groups(
    mode: str = "standard",
    state_rate: float = 1e-3,
    *,
    weight_decay: float = 0.05,
    dt_global: bool = False,
    global_rate: float | None = None,
) -> tuple[ParameterGroup, ...]:
    """S5's conventions, by the names of its `opt_config`; the LRU's parameters belong to the same groups.

        standard        Lambda, dt and B at `state_rate`, no decay; the others at the global rate, with decay
        BandCdecay      B at `state_rate` with decay
        BfastandCdecay  B at the global rate with decay
        noBCdecay       B, C and D at `state_rate`, no decay

    Args:
        mode: One of these.
        state_rate: The peak learning rate of the state space's parameters.
        weight_decay: That of B with "BandCdecay", and of everything with a `global_rate`.
        dt_global: Whether dt has the global rate.
        global_rate: If given, all other parameters get a group with this rate and `weight_decay`, norms and biases
            included, as in S5. None leaves them to `adamw`, which spares norms, biases and D.

    Returns:
        The groups, for `adamw(groups=...)`.

    Raises:
        ValueError: The mode is unknown, a rate is not a finite number or is negative, or `dt_global` is no bool.

    >>> [group.weight_decay for group in s5_groups("BandCdecay", 1e-3, weight_decay=0.04)]
    [0.04, 0.0]
    """
    if mode not in S5_MODES:
        remedy = " The rate is the second argument." if isinstance(mode, int | float) else ""
        raise ValueError(f"{unknown_name('mode of s5_groups', mode, S5_MODES)}{remedy}")
    require_flags("s5_groups", dt_global=dt_global)
    _check("s5_groups", {"global_rate": global_rate}, state_rate=state_rate, weight_decay=weight_decay)
    small = {"A": _S5_SPECTRUM}
    small |= {} if dt_global else {"dt": _S5_STEP}
    small |= {"B": _S5_INPUT} if mode in ("standard", "noBCdecay") else {}
    small |= {"C": _S5_OUTPUT, "D": _S5_SKIP} if mode == "noBCdecay" else {}
    groups = [ParameterGroup(_S5_INPUT, state_rate, weight_decay, ("B",))] if mode == "BandCdecay" else []
    groups.append(ParameterGroup("|".join(small.values()), state_rate, kinds=tuple(small)))
    return (*groups, *([] if global_rate is None else [ParameterGroup(".*", global_rate, weight_decay)]))


def _check(where: str, optional: Mapping[str, float | None], **rates: float) -> None:
    for name, rate in {**rates, **{name: rate for name, rate in optional.items() if rate is not None}}.items():
        as_nonnegative(where, name, rate, remedy="A peak learning rate is 1e-3, say, and a weight decay 0.05.")
