"""Studies of images that make sense: their constants, chosen by measurement on public X-rays (PneumoniaMNIST).

How they were chosen, and what they give: docs/imaging.md. They are those of DP-SGD on the patients of all hospitals,
a step a round, which is what the strategy ``dp-fedsgd`` computes: each hospital's ``batch_divisor`` is the sampling
rate times its own patients, and ``divisor`` here is the sum of them.
"""

from __future__ import annotations

from cipherward.site_agent.tasks.heart_disease.defaults import StudyDefaults

HEAD_STUDY = StudyDefaults(
    rounds=100,
    steps=1,
    sampling_rate=0.3,
    divisor=1164.6,
    learning_rate=100.0,
    clip_norm=0.3,
    metrics_noise_multiplier=100.0,
    metrics_scale=2000.0,
)
"""``medmnist-binary-head``, 3,882 patients."""

NETWORK_STUDY = StudyDefaults(
    rounds=100,
    steps=1,
    sampling_rate=0.1,
    divisor=388.2,
    learning_rate=1.0,
    clip_norm=1.0,
    metrics_noise_multiplier=100.0,
    metrics_scale=2000.0,
)
"""``medmnist-binary``, 3,882 patients."""
