"""This site's own update of a closed round, as it lies in the outbox: what is here need not be fetched to add up the
sum again. It is believed as the others' are, by the root that the close record names."""

from __future__ import annotations

from dataclasses import dataclass

from cipherward.crypto import merkle
from cipherward.crypto.records import Closed
from cipherward.crypto.suites.payload import upload_sizes
from cipherward.errors import EnvironmentProblem
from cipherward.ids import Digest
from cipherward.site_agent.daemon.study import Study
from cipherward.site_agent.journal.outbox import Outbox


@dataclass(frozen=True, slots=True)
class OwnUpdate:
    """The encrypted chunks that this site committed."""

    outbox: Outbox
    attempt: int
    sizes: list[int]
    leaves: list[Digest]

    def chunk(self, index: int) -> bytes:
        """That chunk; EnvironmentProblem if its file is not what it was a moment ago."""
        found = next(self.outbox.chunks(self.attempt, self.sizes, index))
        if merkle.leaf_hash(found) != self.leaves[index]:
            raise EnvironmentProblem("the outbox was changed while it was read")
        return found


def own_update(study: Study, round_number: int, closed: Closed) -> OwnUpdate | None:
    """None if this site is not in U, or what it committed does not lie here whole: it is fetched then."""
    ours = [item for item in closed.record.contributions if item.site == study.site.name]
    if not ours:
        return None
    trust, outbox = study.trust(round_number), study.outbox(round_number)
    sizes = upload_sizes(trust.params, study.layout(trust).length)
    try:
        leaves = [merkle.leaf_hash(chunk) for chunk in outbox.chunks(ours[0].attempt, sizes)]
        if merkle.root(leaves) != ours[0].ciphertext_root:
            raise EnvironmentProblem("the outbox has other chunks than this site committed")
    except EnvironmentProblem as error:
        study.log.warning("the outbox is damaged, fetching this site's update", why=str(error))
        return None
    return OwnUpdate(outbox, ours[0].attempt, sizes, leaves)
