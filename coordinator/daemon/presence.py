"""What is known of sites from their calls. In memory: a restarted coordinator learns it anew."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

from cipherward.clock import Clock


@dataclass
class SitePresence:
    """One site."""

    streams: int = 0
    last_seen: float = 0.0
    problem: str = ""


class Presence:
    """Who is connected, who was seen when, and why a site was last refused."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._sites: defaultdict[str, SitePresence] = defaultdict(SitePresence)
        self._chunks: dict[tuple[str, int, str], int] = {}

    def seen(self, site: str) -> None:
        """An authenticated call came in."""
        self._sites[site].last_seen = self._clock.now()

    def watching(self, site: str, change: int) -> None:
        """A watch stream began (+1) or ended (-1)."""
        self._sites[site].streams += change
        self.seen(site)

    def refused(self, site: str, problem: str) -> None:
        """A call was refused; an empty problem says that a post was accepted again."""
        self._sites[site].problem = problem

    def of(self, site: str) -> SitePresence:
        """What is known of the site."""
        return self._sites.get(site) or SitePresence()

    @property
    def connected(self) -> int:
        """Sites with an open watch stream."""
        return sum(1 for site in self._sites.values() if site.streams > 0)

    def uploaded(self, study: str, round_number: int, site: str, chunks: int) -> None:
        """Chunks stored of the site's newest attempt; those of earlier rounds are forgotten."""
        for key in [k for k in self._chunks if k[0] == study and k[2] == site and k[1] != round_number]:
            del self._chunks[key]
        self._chunks[study, round_number, site] = chunks

    def chunks(self, study: str, round_number: int, site: str) -> int:
        """Chunks stored of the site's newest attempt in the round, as far as this process saw."""
        return self._chunks.get((study, round_number, site), 0)
