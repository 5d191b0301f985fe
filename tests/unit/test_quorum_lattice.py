"""An attack found in review: a wrong key of the sum, made by lattice reduction, that opens checked zeros to zero.

The last of t members to answer knows the others' answers and so the key S of the sum. It picks S' = S - D and
answers so that every site rebuilds S', which opens each ring element C = a S + m + e to m + e + a D: everybody
applies a wrong sum. Two checks stand in its way: |S'| <= 32 |U|, and that zeros sent along open to noise. So D
must be short, and a D small in every coordinate that is checked.

With 8 zero *coordinates* checked and 40 coefficients of D free, that is a short vector of a q-ary lattice of
volume q^8 in 48 dimensions. Its shortest vectors have length about 1.7 q^(8/48) = 68 at q32, entries around 10,
and LLL finds almost as short ones in a tenth of a second. With whole ring elements checked there is no such D,
and so nothing to find (``zero_elements`` in the parameters has the count).

The forger is ``evaluation.threats.kit.lattice``.
"""

from __future__ import annotations

import numpy as np
import pytest

from cipherward.crypto.quorum.chunks import ChunkOpener
from cipherward.crypto.quorum.params import DEGREE
from cipherward.errors import VerificationError
from cipherward.evaluation.threats.kit.lattice import CHECKED, FREE, SITES, Forger, Round, play, product


@pytest.fixture(params=["q32", "q16"])
def played(request: pytest.FixtureRequest) -> Round:
    return play(request.param)


@pytest.fixture
def few_coordinates_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weaken the product's check of the opened zeros to a handful of coordinates; its bound stays."""
    whole = ChunkOpener._check_zero
    monkeypatch.setattr(ChunkOpener, "_check_zero", lambda self, opened: whole(self, opened[:1, :CHECKED]))


def test_honest_answers_open_the_sum(played: Round) -> None:
    assert np.abs(played.opened(played.answers) - played.total).max() <= played.params.error_bound(SITES)


def test_the_forger_sees_what_the_sum_opens_to(played: Round) -> None:
    forger = Forger(played)
    assert np.abs(forger.noise).max() <= played.params.zero_bound(SITES)
    assert np.any(forger.noise)


@pytest.mark.usefixtures("few_coordinates_checked")
def test_a_random_wrong_key_fails_even_a_handful_of_zero_coordinates(played: Round) -> None:
    """So what passes below passes by the lattice reduction, not because the weak check is void."""
    forger = Forger(played)
    difference = np.zeros(DEGREE, dtype=np.int64)
    difference[:FREE] = np.random.default_rng(2).integers(-20, 21, FREE)
    with pytest.raises(VerificationError, match="opened sum is refused"):
        played.opened(forger.answers(difference))


@pytest.mark.usefixtures("few_coordinates_checked")
def test_with_a_handful_of_zero_coordinates_a_forged_key_opens_a_wrong_sum(played: Round) -> None:
    forger = Forger(played)
    differences = forger.differences()
    assert differences
    opened = played.opened(forger.answers(differences[0]))
    assert np.abs(opened - played.total).max() > 100 * played.params.error_bound(SITES)


def test_with_whole_zero_elements_every_forged_key_is_refused(played: Round) -> None:
    forger = Forger(played)
    differences = forger.differences()
    assert len(differences) > FREE
    for difference in differences:
        with pytest.raises(VerificationError, match="opened sum is refused"):
            played.opened(forger.answers(difference))


def test_a_forged_key_is_wrong_nearly_everywhere(played: Round) -> None:
    """It is refused by a wide margin: the coordinates that nobody aimed at are uniform."""
    forger = Forger(played)
    for difference in forger.differences()[:4]:
        noise = forger.noise + product(forger.a, difference, played.params.modulus)
        outside = np.abs(noise) > played.params.zero_bound(SITES)
        assert not outside[forger.order[:CHECKED]].any()
        assert outside.mean() > 0.95
