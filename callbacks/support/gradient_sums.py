"""Sums over the gradient of each parameter, from which the statistics of any group of parameters follow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import sqrt

import torch
from torch import Tensor, nn

from .collectives import largest_over_ranks, local, norm, num_copies, sum_over_ranks, widened


class GradientSums:
    """Sums of one step of an optimizer for each of its P parameters.

    `sums` and `maxima` hold `[P]` each: on the device and of what this rank holds, until `reduce` makes them those of
    all ranks. A parameter without a gradient counts as one without values.
    """

    def __init__(self, parameters: list[nn.Parameter]) -> None:
        self.parameters = parameters
        self.sums: dict[str, Tensor] = {}
        self.maxima: dict[str, Tensor] = {}
        self._copies = self._column([num_copies(parameter) for parameter in parameters]).float()

    def add_gradients(self) -> None:
        """Add up the gradients before they are clipped."""
        self.add_nonfinite()
        gradients = self._gradients()
        numel = self._column([gradient.numel() for gradient in gradients])
        # Whole numbers, because float32 would miss a few values among many.
        self._set("zeros", numel - self._stack([gradient.count_nonzero() for gradient in gradients]))
        self._set_norms("", gradients)

    def add_nonfinite(self) -> None:
        """Count the values of the gradients, and those of them that are NaN or infinite."""
        gradients = self._gradients()
        self._set("numel", self._column([gradient.numel() for gradient in gradients]))
        # Zero times those is NaN, which is not zero; several times as fast as asking what is finite.
        self._set("nonfinite", self._stack([(gradient * 0).count_nonzero() for gradient in gradients]))

    def add_clipped_gradients(self) -> None:
        """Add up the gradients after they have been clipped."""
        self._set_norms("clipped_", self._gradients())

    def add_products(self, earlier: Mapping[nn.Parameter, Tensor]) -> None:
        """Add up the products of the gradients with earlier ones, for their cosine; a missing one counts as zero."""
        before, now = self._values(earlier), self._gradients()
        self._set("products", self._stack([_product(one, other) for one, other in zip(before, now, strict=True)]))
        self._set("earlier_squares", self._stack([norm(gradient) for gradient in before]).square())

    def add_updates(self, before: Mapping[nn.Parameter, Tensor]) -> None:
        """Add up the squares of the weights before the step, and those of their change."""
        old, new = self._values(before), self._values({p: p for p in before})
        changes = [norm(widened(later) - widened(earlier)) for later, earlier in zip(new, old, strict=True)]
        self._set("update_squares", self._stack(changes).square())
        self._set("weight_squares", self._stack([norm(weights) for weights in old]).square())

    def figures(self, rows: Sequence[int]) -> dict[str, float]:
        """Statistics of a group of parameters, once its sums are reduced; none that is not defined."""
        sums = {name: column[rows].sum().item() for name, column in self.sums.items()}
        if not sums["numel"]:
            return {}
        figures = self._describe(sums, rows, "") | {
            "zero_share": sums["zeros"] / sums["numel"],
            "nonfinite_share": sums["nonfinite"] / sums["numel"],
        }
        if "clipped_squares" in sums:
            figures |= self._describe(sums, rows, "clipped_")
        if sums.get("weight_squares"):
            figures["update_to_weight"] = sqrt(sums["update_squares"] / sums["weight_squares"])
        if sums.get("earlier_squares") and sums["squares"]:
            figures["cosine"] = sums["products"] / sqrt(sums["earlier_squares"] * sums["squares"])
        return figures

    def _column(self, values: list[int]) -> Tensor:
        # This does not wait for the device, as a tensor that is made there would.
        return torch.tensor(values).to(self.parameters[0].device, non_blocking=True)

    def _stack(self, values: Sequence[Tensor]) -> Tensor:
        """Stack one value for each parameter; parameters may be on several devices."""
        return torch.stack([value.to(self._copies.device) for value in values])

    def _gradients(self) -> list[Tensor]:
        return self._values({parameter: parameter.grad for parameter in self.parameters})

    def _values(self, tensors: Mapping[nn.Parameter, Tensor | None]) -> list[Tensor]:
        """Part of a tensor on this rank for each parameter, empty where there is none."""
        # An empty tensor is not made like its parameter, which may be of integers, of eight bits, or have no shape yet.
        nothing = torch.empty(0, device=self._copies.device)
        return [nothing if tensor is None else local(tensor) for tensor in map(tensors.get, self.parameters)]

    def _set_norms(self, prefix: str, gradients: list[Tensor]) -> None:
        self._set(f"{prefix}absolute", self._stack([norm(gradient, 1) for gradient in gradients]))
        self._set(f"{prefix}squares", self._stack([norm(gradient) for gradient in gradients]).square())
        self.maxima[f"{prefix}max"] = self._stack([_largest(gradient) for gradient in gradients])

    def _set(self, name: str, column: Tensor) -> None:
        self.sums[name] = column.to(self._copies) / self._copies

    def _describe(self, sums: Mapping[str, float], rows: Sequence[int], prefix: str) -> dict[str, float]:
        return {
            f"{prefix}norm": sqrt(sums[f"{prefix}squares"]),
            f"{prefix}max": self.maxima[f"{prefix}max"][rows].max().item(),
            f"{prefix}mean": sums[f"{prefix}absolute"] / sums["numel"],
        }


def reduce(steps: Sequence[GradientSums]) -> None:
    """Make the sums those of all ranks, as float64 on the CPU; wait for the device once."""
    sums, maxima = [step.sums for step in steps], [step.maxima for step in steps if step.maxima]
    whole = sum_over_ranks(_join(sums))
    if maxima:
        whole = torch.cat([whole, largest_over_ranks(_join(maxima))])
    places = [(columns, name) for columns in (*sums, *maxima) for name in columns]
    pieces = whole.cpu().double().split([len(columns[name]) for columns, name in places])
    for (columns, name), piece in zip(places, pieces, strict=True):
        columns[name] = piece


def _join(dicts: Sequence[Mapping[str, Tensor]]) -> Tensor:
    return torch.cat([column for columns in dicts for column in columns.values()])


def _product(one: Tensor, other: Tensor) -> Tensor:
    is_known = one.shape == other.shape
    return (widened(one) * widened(other)).sum() if is_known else torch.zeros((), device=one.device)


def _largest(gradient: Tensor) -> Tensor:
    # Shards may be empty, and those have no largest value.
    if not gradient.numel():
        return torch.zeros((), device=gradient.device)
    return torch.stack(gradient.aminmax()).abs().amax().float()
