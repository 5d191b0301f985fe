"""Noise that the sites share (``dp-fedsgd``), in numbers: who counts as honest, what one site adds, what a sum has.

Every site adds N(0, u^2) to each coordinate of its sum of clipped gradients, u = sigma C / sqrt(h), with
h = k - c. A round opens with at least k contributors; the c that may collude know their own noise and subtract it,
so that at least h parts are left: together a standard deviation of sigma C, what DP-SGD on the pooled data would have.
The metrics' noise is shared in the same way.
"""

from __future__ import annotations

import math

from cipherward.proto.v1.study_pb2 import Manifest

NOISE_ROOM = 10.0
"""Standard deviations of a site's noise that an upload leaves room for above what is clipped. Clipping after the
noise must never matter: a site's noised value alone has only its share of the noise, and what changes it by itself is
no post-processing of the sum. The chance that one coordinate needs more is below 2^-75."""
LEAST_UNITS = 8.0
"""Of one site's noise, in integer units of the encoding. Values are rounded once, after the noise: from 3 units on,
the sum of rounded values tells nothing that the rounded sum would not, but for exp(-2 pi^2 units^2)."""
METRICS_SENSITIVITY = math.sqrt(3)
"""L2, of what one patient adds to the metrics (loss, correct, n), each in [0, 1]."""


def honest_contributors(manifest: Manifest) -> int:
    """h = k - c: contributors of the smallest sum that do not collude."""
    return manifest.minimum_cohort - manifest.colluders


def noise_share(manifest: Manifest) -> float:
    """u: standard deviation of one site's noise on a coordinate of its sum of gradients, in the gradient's unit."""
    return manifest.dp.noise_multiplier * manifest.dp.clipping_norm / math.sqrt(honest_contributors(manifest))


def metrics_noise_share(manifest: Manifest) -> float:
    """Standard deviation of one site's noise on a metric, in patients."""
    honest = math.sqrt(honest_contributors(manifest))
    return manifest.dp.metrics.noise_multiplier * METRICS_SENSITIVITY / honest


def realised_noise_multiplier(manifest: Manifest, contributors: int) -> float:
    """sigma of the noise that a sum over so many contributors really has, for whoever is none of them. At least the
    promised one; more where more than h contributed."""
    share = contributors / honest_contributors(manifest)
    return manifest.dp.noise_multiplier * math.sqrt(share)
