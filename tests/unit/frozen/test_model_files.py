"""What every part that is read from files does."""

from __future__ import annotations

import pytest

from lightning_action.frozen.model_files import wan_extra


def test_a_missing_package_is_told_with_its_extra() -> None:
    with pytest.raises(ModuleNotFoundError, match=r"'diffusers_of_tomorrow': .*lightning_action\[wan\]"), wan_extra():
        import diffusers_of_tomorrow  # type: ignore[import-not-found]  # noqa: F401
