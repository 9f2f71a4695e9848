from __future__ import annotations

import pytest

from lightning_action.generator.acceleration import Acceleration


def test_a_pass_and_its_layers_are_not_compiled_both() -> None:
    with pytest.raises(ValueError, match="capture_pass compiles the whole pass"):
        Acceleration(compile_mode="default", capture_pass=True)
