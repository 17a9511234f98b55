"""Spread groups (subjects) over folds so that every fold has about the same number of each class."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["imbalance", "stratified_groups"]


def imbalance(totals: NDArray[np.float64]) -> float:
    """How unevenly classes are spread: the sum over classes of the squared shares' deviation from 1 / folds.

    Args:
        totals: Number of images of each class in each fold, shape (folds, classes).

    >>> imbalance(np.array([[5.0, 1.0], [5.0, 1.0]]))
    0.0
    """
    shares = totals / np.maximum(totals.sum(0), 1)
    return float(((shares - shares.mean(0)) ** 2).sum())


def stratified_groups(labels: NDArray[np.int64], groups: Sequence[str], k: int, *, seed: int) -> NDArray[np.int64]:
    """The fold of each image: whole groups, no fold empty, classes as even as moves and swaps can make them.

    Groups are dealt out greedily, the most lopsided first, in a seeded order among equals, each to the fold
    where it does least harm; then groups are moved, and pairs of groups exchanged, as long as that lowers
    ``imbalance``.

    Args:
        labels: Class of each image, shape (n,).
        groups: Group of each image; at least ``k`` different ones.
        k: Number of folds.
        seed: Of the order in which equals are dealt out.

    Returns:
        Fold of each image, shape (n,), from 0 to k - 1.
    """
    names, member_of = np.unique(np.array(groups, dtype=str), return_inverse=True)
    classes, label_of = np.unique(labels, return_inverse=True)
    counts = np.zeros((len(names), len(classes) + 1))
    np.add.at(counts, (member_of, label_of), 1)
    counts[:, -1] = counts.sum(1)  # the size of a fold counts like one more class
    weights = counts / counts.sum(0)

    order = np.random.default_rng(seed).permutation(len(names))
    order = order[np.argsort(-weights[order].std(1), kind="stable")]
    fold_of = np.full(len(names), -1, dtype=np.int64)
    totals = np.zeros((k, weights.shape[1]))
    sizes = np.zeros(k, dtype=np.int64)
    for position, group in enumerate(order):
        empty = np.flatnonzero(sizes == 0)
        # The last groups go to folds that are still empty.
        allowed = empty if len(names) - position <= len(empty) else np.arange(k)
        # Adding w to a fold with total t raises the sum of squares by 2 t.w + w.w; the folds' mean does not
        # depend on it.
        harm = totals[allowed] @ weights[group]
        best = allowed[np.lexsort((sizes[allowed], harm.round(12)))[0]]
        fold_of[group] = best
        totals[best] += weights[group]
        sizes[best] += 1
    _improve(fold_of, weights, totals, sizes)
    return fold_of[member_of]


def _improve(
    fold_of: NDArray[np.int64],
    weights: NDArray[np.float64],
    totals: NDArray[np.float64],
    sizes: NDArray[np.int64],
) -> None:
    """Carry out the best move or exchange until none lowers the sum of squares of ``totals`` (in place)."""
    n = len(fold_of)
    norms = (weights**2).sum(1)
    products = weights @ weights.T
    while True:
        reach = weights @ totals.T  # (groups, folds): w_g . t_f
        own = reach[np.arange(n), fold_of]
        # Moving g from a to b changes the sum of squares by 2 (w.t_b - w.t_a + w.w).
        move = 2 * (reach - own[:, None] + norms[:, None])
        move[np.arange(n), fold_of] = np.inf
        move[sizes[fold_of] == 1] = np.inf
        # Exchanging g in a and h in b, with d = w_g - w_h: 2 (d.(t_b - t_a) + d.d).
        cross = reach[:, fold_of]  # w_g . t_(fold of h)
        swap = 2 * (cross - own[:, None] - own[None, :] + cross.T + norms[:, None] + norms[None, :] - 2 * products)
        swap[fold_of[:, None] == fold_of[None, :]] = np.inf
        best_move, best_swap = move.min(), swap.min()
        if min(best_move, best_swap) > -1e-12:
            return
        if best_move <= best_swap:
            group, target = np.unravel_index(move.argmin(), move.shape)
            _move(int(group), int(target), fold_of, weights, totals, sizes)
        else:
            group, other = np.unravel_index(swap.argmin(), swap.shape)
            here, there = int(fold_of[group]), int(fold_of[other])
            _move(int(group), there, fold_of, weights, totals, sizes)
            _move(int(other), here, fold_of, weights, totals, sizes)


def _move(
    group: int,
    target: int,
    fold_of: NDArray[np.int64],
    weights: NDArray[np.float64],
    totals: NDArray[np.float64],
    sizes: NDArray[np.int64],
) -> None:
    source = fold_of[group]
    totals[source] -= weights[group]
    totals[target] += weights[group]
    sizes[source] -= 1
    sizes[target] += 1
    fold_of[group] = target
