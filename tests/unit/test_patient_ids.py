"""A patient whose id is spelt in two ways is one patient, to the training as to the ledger."""

from __future__ import annotations

import unicodedata

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cipherward.errors import UsageError
from cipherward.site_agent.ledger.patients import PatientKey
from cipherward.site_agent.patient_ids import canonical
from cipherward.site_agent.tasks.base import BinaryTask, Records, Split
from cipherward.site_agent.training.gradients import PatientGradients

torch.set_num_threads(1)
SPELLINGS = ("Zo\u00eb", "Zoe\u0308", " Zo\u00eb ", "Zoe\u0308\t")


class Linear(BinaryTask):
    name = "linear"

    def model(self) -> torch.nn.Module:
        return torch.nn.Linear(3, 1)

    def load(self, source: str, split: Split) -> Records:
        raise NotImplementedError


def test_a_patient_in_several_spellings_moves_the_sum_by_at_most_c() -> None:
    count = len(SPELLINGS)
    records = Records(torch.full((count, 3), 50.0), torch.zeros(count), SPELLINGS)
    assert len(records.patients) == len(PatientKey(bytes(32)).digests(SPELLINGS)) == 1
    task = Linear()
    sampler = PatientGradients(task, task.model(), records, torch.device("cpu"))
    for parameter in sampler._parameters:
        torch.nn.init.zeros_(parameter)  # each record alone has a gradient of norm 43
    total, _ = sampler.clipped_sum(np.arange(sampler.patients), 1.0)
    assert float(total.norm()) == pytest.approx(1.0, rel=1e-6)


@given(st.text())
def test_one_spelling_is_enough(text: str) -> None:
    once = canonical(text)
    assert canonical(once) == once == canonical(unicodedata.normalize("NFD", text))


def test_blanks_are_no_id() -> None:
    with pytest.raises(UsageError, match="without a patient id"):
        Records(torch.zeros(1, 2), torch.zeros(1), (" \t",))
