"""Fixtures of the op tests."""

import jaxtyping
import pytest


@pytest.fixture
def as_a_user(monkeypatch):
    """Turns the run-time check of annotations off, as it is for users, so that the ops' own errors are met."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
