"""Measures of a whole set of clips, and the credit of each clip in them. Arithmetic on embeddings alone.

Shapes: N clips, M exemplars, D dimensions, K classes. All float64.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Measure = Callable[[Floats], float]


def frechet_distance(made_ND: Floats, exemplars_MD: Floats) -> float:
    """Frechet distance of two Gaussians fitted to the rows (FAD, FID): |m1 - m2|^2 + Tr(S1 + S2 - 2 (S1 S2)^1/2).

    The last trace is the nuclear norm of X Y^T / sqrt((N - 1) (M - 1)), X and Y being the centred rows, which needs no
    D x D root. Few rows bias it upwards: compare sets of one size only. Needs two rows of each.
    """
    first, second = made_ND - made_ND.mean(0), exemplars_MD - exemplars_MD.mean(0)
    free = len(first) - 1, len(second) - 1
    between = np.linalg.svd(first @ second.T, compute_uv=False).sum() / np.sqrt(free[0] * free[1])
    spread = np.square(first).sum() / free[0] + np.square(second).sum() / free[1]
    shift = np.square(made_ND.mean(0) - exemplars_MD.mean(0)).sum()
    return float(max(0.0, shift + spread - 2.0 * between))


def vendi_score(made_ND: Floats) -> float:
    """Effective number of different rows (Friedman and Dieng 2023): exp of the entropy of the eigenvalues of K / N,
    K being the cosines. 1 where all are alike, N where all are orthogonal."""
    unit = made_ND / np.maximum(np.linalg.norm(made_ND, axis=1, keepdims=True), 1e-12)
    values = np.linalg.eigvalsh(unit @ unit.T / len(unit))
    values = values[values > 1e-12]
    return max(1.0, float(np.exp(-(values * np.log(values)).sum())))


def inception_score(classes_NK: Floats) -> float:
    """Exp of the mean KL divergence of each row's class probabilities to their mean (Salimans et al. 2016). 1 to K."""
    mean = classes_NK.mean(0, keepdims=True)
    return float(np.exp(_kl(classes_NK, mean).mean()))


def class_divergence(made_NK: Floats, exemplars_MK: Floats) -> float:
    """KL divergence of the exemplars' mean class probabilities from those of the set, in nats."""
    return float(_kl(exemplars_MK.mean(0, keepdims=True), made_NK.mean(0, keepdims=True))[0])


def _kl(first: Floats, second: Floats) -> Floats:
    ratio = np.log(np.maximum(first, 1e-12)) - np.log(np.maximum(second, 1e-12))
    return np.asarray((first * ratio).sum(-1))


def leave_one_out(measure: Measure, rows: Floats) -> Floats:
    """What each row adds: measure(all) - measure(all but it) [N]. Makes a measure of a set pointwise, as DRAGON needs
    (arXiv 2504.15217); the cost is N + 1 evaluations."""
    whole, places = measure(rows), np.arange(len(rows))
    return np.array([whole - measure(rows[places != place]) for place in places])
