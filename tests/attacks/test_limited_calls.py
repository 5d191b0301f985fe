"""A coordinator that limits how often it is called does not make a site refuse a sum: the site asks again."""

from contextlib import suppress

import numpy as np
import pytest
from kit_hospitals import updates

from cipherward.errors import LimitError, UnavailableError


@pytest.mark.parametrize("rpc", ["sum_checks", "update_chunks", "post_sum_check"])
def test_a_limit_on_calls_is_waited_out(make_hospitals, monkeypatch, rpc):
    world = make_hospitals(4)
    trained = updates(world.names, 1)
    world.to_answers(1, trained)
    link = type(world.agents["alpha"].study.client)
    honest, refused = getattr(link, rpc), []

    def limited(self, *args, **named):
        if len(refused) < 2:
            refused.append(rpc)
            raise LimitError(f"{rpc} is called too often")
        return honest(self, *args, **named)

    with monkeypatch.context() as patch:
        patch.setattr(link, rpc, limited)
        for agent in world.each():
            agent.protection._checking.forget()
        for name in world.names * 3:  # what the agent does after UnavailableError
            with suppress(UnavailableError):
                world.release(1, [name])
    assert len(refused) == 2
    mean = np.mean(list(trained.values()), axis=0)
    for name in world.names:
        assert np.abs(world.model(name) - mean).max() <= world.params.error_bound(4)
        assert world.incidents(name) == []
