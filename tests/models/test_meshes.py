"""Every layer and model on explicit meshes, which `jax.make_mesh` makes by default, and on automatic ones."""

import subprocess
import sys

import pytest

from tests.models import mesh_target
from tests.models.registry_cases import failures, layer_names, model_names
from tests.repo.sources import ROOT

pytestmark = pytest.mark.usefixtures("as_a_user")

GROUPS = 12
SHOWN = ["BiMamba(v2)", "Mamba2", "S4ND", "Downsample(merge)", "vim_nano", "mamba3_nano", "mambavision_micro"]
"""One of each kind that an explicit mesh needs something of: a window, a state, images, windows, tokens."""


@pytest.mark.parametrize("name", SHOWN)
def test_a_trace_on_an_explicit_mesh(name):
    mesh_target.trace(name)


@pytest.mark.slow
@pytest.mark.parametrize("group", range(GROUPS))
def test_values_and_gradients_on_eight_devices(group):
    names = [*layer_names(), *model_names()][group::GROUPS]
    command = [sys.executable, "-m", "tests.models.mesh_target", *names]
    done = subprocess.run(command, check=False, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_failures_are_told():
    def check(name):
        if name == "bad":
            raise ValueError("why")

    assert failures(check, ["good", "bad"]) == "bad: ValueError: why"
