"""The card of an adapter, read as the Hub reads it."""

from __future__ import annotations

import pytest
from huggingface_hub import ModelCard

from lightning_action.action.schema import ActionPart, ActionSchema
from lightning_action.evaluation.report.model_card import model_card
from lightning_action.evaluation.report.report import null_where_undefined
from tests.support import made_up_report

SCHEMA = ActionSchema(
    [
        ActionPart("move", low=[-2.0, -3.0], high=4.0),
        ActionPart("keys", "multi_hot", 3),
        ActionPart("tool", "discrete", 5),
    ]
)
STATISTICS = [{"name": "move", "mean": 0.25, "std": 1.5, "low": -2.0, "high": 4.0, "is_whole": False}]


def test_the_hub_reads_metadata_and_results() -> None:
    report = null_where_undefined(made_up_report.report())
    card = ModelCard(model_card("adapter.safetensors", "ab12", SCHEMA, STATISTICS, report, True))
    assert card.data.library_name == "lightning_action" and "world-model" in card.data.tags
    assert card.data.model_name == "adapter"
    results = {result.metric_type: result for result in card.data.eval_results}
    assert results["gain_x"].metric_value == pytest.approx(report["gain_x"], abs=1e-4)
    assert results["gain_x"].dataset_name == "SpriteDataModule, test split"
    assert "r2_y" not in results  # undefined
    assert "**obeys**" in card.text and "12 test episodes" in card.text and "gain_low 0.8" in card.text


def test_the_card_says_what_an_action_is() -> None:
    card = model_card("adapter.safetensors", "ab12", SCHEMA, STATISTICS)
    for line in (
        *("| 0 to 1 | move | continuous | [-2.0, -3.0] | 4.0 |", "| 2 to 4 | keys | multi-hot |  |  |"),
        *("| 5 | tool | 5 classes |  |  |", "| move | 0.25 | 1.5 | -2 | 4 |"),
        *("| 0 | 0 | none |", "| 1 | 1 to 4 | 0 to 3 |", "| 3 | 9 to 12 | 8 to 11 |"),
        *("L latent frames take 4 L - 4 rows", "fingerprint `ab12`", 'adapter="adapter.safetensors"'),
    ):
        assert line in card, line


@pytest.mark.parametrize(
    ("alignment", "rows"), [("transition", "4 L - 4 rows"), ("state", "4 L - 3 rows"), ("per_latent", "take L rows")]
)
def test_the_number_of_rows_is_that_of_the_alignment(alignment: str, rows: str) -> None:
    assert rows in model_card("a", "b", ActionSchema(alignment=alignment))  # type: ignore[arg-type]


def test_a_card_without_a_report_says_so() -> None:
    card = ModelCard(model_card("adapter.safetensors", "ab12", SCHEMA))
    assert "no report was given when this card was written" in card.text
    assert card.data.eval_results is None and "obeys" not in card.text


def test_a_report_that_does_not_say_of_what_is_marked() -> None:
    report = {"gain_x": 0.9, "verdict": {"label": "partly", "reasons": ["x | y"]}}
    card = model_card("adapter.safetensors", "ab12", SCHEMA, (), report, False)
    assert "does not say which weights" in card and "**partly**" in card
    assert "| gain x (ideal 1) | 0.900 |  |" in card
