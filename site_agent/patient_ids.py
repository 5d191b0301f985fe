"""One spelling for each patient's id, for the training and the ledger alike: who is charged as one patient must be
clipped as one."""

from __future__ import annotations

import unicodedata


def canonical(patient_id: str) -> str:
    """Without spaces around it, in Unicode's composed form (NFC)."""
    return unicodedata.normalize("NFC", patient_id).strip()
