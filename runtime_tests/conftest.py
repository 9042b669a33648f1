"""Keeps the gates out of test runs that are not about an artifact."""

from __future__ import annotations

import pytest


def pytest_ignore_collect(config: pytest.Config) -> bool | None:
    """Collects nothing here unless the suite's plugin was loaded and given an artifact."""
    return None if config.pluginmanager.has_plugin("secateur-gates") else True
