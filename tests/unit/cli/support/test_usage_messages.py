"""What jsonargparse says, put into one sentence; tests/unit/cli/support/test_usage.py has it from the parser."""

from __future__ import annotations

from lightning_action.cli.support.usage_messages import explain, nearest


def test_words() -> None:
    assert nearest("fitt", ["fit", "test"]) == "fit" and nearest("x", ["fit"]) is None
    assert explain("argument subcommand: invalid choice: 'chek' (choose from 'fit', 'test')") == (
        "there is no verb 'chek': did you mean 'check'?"
    )
