"""The pytest plugin of the gate suite: its options.

    pytest -p secateur.runtime_tests.plugin --pyargs secateur.runtime_tests --artifact out --gates gates.yaml

pytest reads options from a `conftest.py` only for directories that it is given as paths, hence a plugin.
"""

from __future__ import annotations

import pytest

from ..errors import UserError


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds the options of the suite."""
    group = parser.getgroup("secateur", "gates of a secateur artifact")
    group.addoption("--artifact", metavar="DIR", help="directory of the artifact")
    group.addoption(
        "--gates", metavar="FILE", help="YAML file with gates, data and metric; the default gates without it"
    )
    group.addoption("--verdict", metavar="FILE", help="writes the verdict here, as JSON")


def pytest_configure(config: pytest.Config) -> None:
    """Reads the gates once, so that a wrong file is one message and not one for each gate."""
    if config.getoption("--artifact") is not None:
        from .gate_run import GateRun  # imports torch and the runtime

        try:
            config.pluginmanager.register(GateRun(config), "secateur-gates")
        except UserError as error:
            raise pytest.UsageError(error.render()) from None
