"""The learning rate as a function of the step alone, so that a resumed run goes on as if nothing had happened."""

from __future__ import annotations

import bisect
import math

from ferattn.training.recipe import Recipe

__all__ = ["lr_factor"]


def lr_factor(recipe: Recipe, step: int, steps_per_epoch: int) -> float:
    """Share of the largest learning rate at a step, for every schedule but plateau and one-cycle.

    Args:
        recipe: For ``schedule``, ``warmup_epochs``, ``epochs`` and the steps.
        step: Optimizer steps taken so far.
        steps_per_epoch: Of one epoch.

    >>> recipe = Recipe(schedule="cosine", epochs=10, warmup_epochs=2)
    >>> [round(lr_factor(recipe, step, 5), 2) for step in (0, 9, 10, 30, 49)]
    [0.1, 1.0, 1.0, 0.5, 0.0]
    """
    warmup = recipe.warmup_epochs * steps_per_epoch
    if step < warmup:
        return (step + 1) / warmup
    if recipe.schedule == "cosine":
        progress = (step - warmup) / max(1, recipe.epochs * steps_per_epoch - warmup)
        return 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
    if recipe.schedule == "steps":
        passed = bisect.bisect_right(recipe.step_epochs, step // steps_per_epoch)
        return recipe.step_factors[passed - 1] if passed else 1.0
    return 1.0
