"""The shared key of a manifest version: made once by the site that the manifest names, sealed to each of
the others, and compared by digest across the plan before anyone uses it. A new version has a new key, so
that a site that left cannot open what comes after it."""

from __future__ import annotations

import threading
from pathlib import Path

from cipherward.crypto.records import StudyTrust
from cipherward.crypto.suites.base import KeyLifetime, StudyKey
from cipherward.crypto.suites.site_side import study_key_side
from cipherward.durable import read_secret, write_secret
from cipherward.errors import UnavailableError, VerificationError
from cipherward.proto.v1.round_pb2 import RelayItem
from cipherward.site_agent.daemon.relay import open_item, seal_item
from cipherward.site_agent.daemon.revocation import is_site_in_force
from cipherward.site_agent.daemon.study import Study

MAX_KEY_BYTES = 2**20


class SharedKeys:
    """The keys of one study, by manifest version, each in a file of mode 0600 that is written once."""

    def __init__(self, study: Study) -> None:
        self._study = study
        self._lock = threading.Lock()
        self._sealed: set[tuple[bytes, str]] = set()

    def path(self, trust: StudyTrust) -> Path:
        """The file of that version's key."""
        return self._study.site.folder.shared_keys / f"{trust.digest.hex()}.key"

    def get(self, trust: StudyTrust) -> StudyKey:
        """The key: from disk, else made here (by its maker), else fetched from the relay.

        It is on disk before it is returned. Raises UnavailableError while the maker has not sent it.
        """
        with self._lock:
            if not self.path(trust).exists():
                maker = trust.manifest.suite.key_maker
                content = self._make(trust) if maker == self._study.site.name else self._fetch(trust, maker)
                write_secret(self.path(trust), content)
            return self._load(trust, read_secret(self.path(trust)))

    def _load(self, trust: StudyTrust, content: bytes) -> StudyKey:
        return study_key_side(trust.manifest.suite.name).load_key(trust.params, content)

    def _make(self, trust: StudyTrust) -> bytes:
        key = study_key_side(trust.manifest.suite.name).generate_key(trust.params)
        self._study.log.info("made the shared key", version=trust.manifest.version)
        return key.reveal()

    def _fetch(self, trust: StudyTrust, maker: str) -> bytes:
        received = open_item(
            self._study.client.get_relay(self._study.name, RelayItem.KIND_SHARED_KEY, maker),
            trust,
            self._study.site.sealing_key,
            receiver=self._study.site.name,
            kind=RelayItem.KIND_SHARED_KEY,
            max_bytes=MAX_KEY_BYTES,
            accept=lambda item: None,
        )
        if received is None:
            raise UnavailableError("the shared key is not here yet", why=f"{maker} makes and seals it")
        item, content = received
        if self._load(trust, content).digest(trust.digest) != item.content_digest:
            raise VerificationError(
                f"the shared key that {maker} sent is refused",
                why="it does not have the digest that it signed",
            )
        self._study.log.info("received the shared key", sender=maker, version=trust.manifest.version)
        return content

    def serve(self, trust: StudyTrust, wanted_by: list[str]) -> None:
        """As the maker: seal the key to each site that the coordinator says has none, once until it says
        otherwise in between. Only the roster's pinned keys count, so that asking in another name gains
        nothing. The maker's own item tells the coordinator that the key is made. For one thread."""
        site = self._study.site
        if trust.key_lifetime is not KeyLifetime.STUDY or trust.manifest.suite.key_maker != site.name:
            return
        key = self.get(trust)
        # Snapshots made before an item was stored still ask for it.
        self._sealed &= {(trust.digest, receiver) for receiver in wanted_by}
        for receiver in wanted_by:
            if (trust.digest, receiver) in self._sealed:
                continue
            if not is_site_in_force(site, trust, receiver):
                self._study.log.warning("no key for a revoked site", receiver=receiver)
                continue
            self._study.client.put_relay(
                seal_item(
                    trust,
                    site.member.signing_key,
                    str(site.member.identity),
                    kind=RelayItem.KIND_SHARED_KEY,
                    sender=site.name,
                    receiver=receiver,
                    round_number=0,
                    content=key.reveal(),
                    content_digest=key.digest(trust.digest),
                )
            )
            self._sealed.add((trust.digest, receiver))
            self._study.log.info("sealed the shared key", receiver=receiver, version=trust.manifest.version)
