from __future__ import annotations

import pytest
import torch

from lightning_action.diffusion.guidance import NO_GUIDANCE, Branch, Guidance

OWN, NO_PROMPT, NO_ACTION = Branch(), Branch(takes_prompt=False), Branch(takes_action=False)


@pytest.mark.parametrize(
    ("prompt_scale", "action_scale", "branches"),
    [
        (1, 1, [OWN]),
        (5, 1, [OWN, NO_PROMPT]),
        (1, 3, [OWN, NO_ACTION]),
        (5, 3, [OWN, NO_PROMPT, NO_ACTION]),
        (1, 0, [NO_ACTION]),
        (0, 1, [NO_PROMPT]),
        (0, 0, [Branch(False, False)]),
        (5, 0, [NO_ACTION, Branch(False, False)]),
    ],
)
def test_only_what_is_needed_is_computed(prompt_scale: float, action_scale: float, branches: list[Branch]) -> None:
    guidance = Guidance(prompt_scale, action_scale)
    assert list(guidance.branches) == branches
    assert guidance.takes_negative_prompt == any(not branch.takes_prompt for branch in branches)


def test_one_alone_is_the_usual_classifier_free_guidance() -> None:
    own, other = torch.randn(2, 3, 4, 5, 6).double().unbind(0)
    for guidance in (Guidance(prompt_scale=4.5), Guidance(action_scale=4.5)):
        torch.testing.assert_close(guidance.combine([own, other], 700.0), other + 4.5 * (own - other))
    assert torch.equal(NO_GUIDANCE.combine([own], 0.0), own)


def test_two_directions_add_up() -> None:
    own, negative, null = torch.randn(3, 2, 4, 5, 6).double().unbind(0)
    expected = own + 4 * (own - negative) + 1.5 * (own - null)
    torch.testing.assert_close(Guidance(5, 2.5).combine([own, negative, null], 1.0), expected)


@pytest.mark.parametrize(("timestep", "is_guided"), [(199.0, False), (200.0, True), (800.0, True), (801.0, False)])
def test_outside_of_the_interval_there_is_none(timestep: float, is_guided: bool) -> None:
    own, other = torch.zeros(2), torch.ones(2)
    guided = Guidance(prompt_scale=3, interval=(200.0, 800.0)).combine([own, other], timestep)
    assert torch.equal(guided, torch.full((2,), -2.0 if is_guided else 0.0))


def test_pushing_is_combining_at_any_level() -> None:
    guidance = Guidance(prompt_scale=1.5, action_scale=3.0, interval=(200.0, 400.0))
    own, negative, null = torch.randn(3, 2, 5)
    pushed = guidance.push([own, negative, null])
    torch.testing.assert_close(pushed, own + 0.5 * (own - negative) + 2 * (own - null))
    assert torch.equal(guidance.combine([own, negative, null], 300.0), pushed)
    assert torch.equal(guidance.combine([own, negative, null], 500.0), own)
