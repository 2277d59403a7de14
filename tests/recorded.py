"""Outcomes and architectures that were recorded with one version of transformers."""

from __future__ import annotations

import pytest
import transformers

IS_RECORDED = transformers.__version__.startswith("5.24.")  # whether this is the version
AS_RECORDED = pytest.mark.skipif(not IS_RECORDED, reason="another transformers writes this architecture otherwise")
