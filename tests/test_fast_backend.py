"""Which backend is taken, and that it is the compiled one where it matters."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pact import _fast

CHECKOUT = Path(__file__).resolve().parent.parent


def ask(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        cwd=CHECKOUT,
        env={**os.environ, **environment},
    )


@pytest.mark.skipif("CI" not in os.environ, reason="a developer may work without a compiler")
def test_continuous_integration_runs_the_compiled_kernels() -> None:
    assert os.environ.get("PACT_FAST") == "reference" or _fast.BACKEND == "compiled"


def test_the_reference_can_be_asked_for_and_has_the_same_names() -> None:
    code = "from pact import _fast; print(_fast.BACKEND, all(hasattr(_fast, n) for n in _fast.__all__))"
    assert ask(code, PACT_FAST="reference").stdout.split() == ["reference", "True"]


def test_an_unknown_backend_is_an_error_that_names_the_choices() -> None:
    done = ask("import pact._fast", PACT_FAST="turbo")
    assert done.returncode == 1
    assert "compiled or reference" in done.stderr


@pytest.mark.parametrize("backend", ["", "reference"])
def test_no_backend_imports_numpy(backend: str) -> None:
    code = "import sys, pact._fast; print('numpy' in sys.modules, 'typing_extensions' in sys.modules)"
    assert ask(code, PACT_FAST=backend).stdout.split() == ["False", "False"]


def test_without_the_extension_the_reference_serves() -> None:
    code = "import sys; sys.modules['pact._fast.wheel'] = None; import pact._fast; print(pact._fast.BACKEND)"
    assert ask(code, PACT_FAST="").stdout.strip() == "reference"
    assert ask(code, PACT_FAST="compiled").returncode == 1
