"""Flower's SecAgg+, by Flower's own client mod and server workflow. Runs in Flower's virtual environment.

A whole round: ``SecAggPlusWorkflow`` sends its messages through a grid that hands them to ``secaggplus_mod`` of
each node, in this process, and each reply is pushed with the client app's own ``push_message`` and inflated as
the server's grid does. What stands in for Flower's network is an in-memory client that serialises every request.
Settings are the workflow's defaults; every node is every other's neighbour, and 7 of 10 can reconstruct.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import time
from collections.abc import Callable, Iterable

import numpy as np
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.app.message_type import MessageType
from flwr.client.mod import secaggplus_mod
from flwr.common import (
    Code,
    FitIns,
    FitRes,
    NDArray,
    Parameters,
    Status,
    ndarrays_to_parameters,
    parameters_to_ndarrays,
)
from flwr.compat.common import recorddict_compat
from flwr.proto.message_pb2 import PushObjectRequest, PushObjectResponse
from flwr.proto.runtime_pb2 import PushAppMessagesRequest, PushAppMessagesResponse
from flwr.server.client_proxy import ClientProxy
from flwr.server.compat.grid_client_proxy import GridClientProxy
from flwr.server.compat.legacy_context import LegacyContext
from flwr.server.strategy import FedAvg
from flwr.server.workflow import SecAggPlusWorkflow
from flwr.server.workflow.constant import MAIN_CONFIGS_RECORD, MAIN_PARAMS_RECORD, Key
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    iterate_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents, push_objects
from flwr.supercore.task_identity import TaskIdentity
from flwr.supernode.runtime.run_clientapp import push_message
from repetitions import Repetition, serve

EXAMPLES = 1000  # every client's weight: the workflow's default for the largest
THRESHOLD = 0.7  # of the clients
LARGEST_ERROR = 1e-5  # of the mean; one step of the default quantiser is 3.8e-6
STAGES = ("setup", "share keys", "collect masked vectors", "unmask")


class InMemoryNetwork:
    """Where a client app pushes its reply: counts the serialised bytes and keeps the objects."""

    def __init__(self) -> None:
        self.bytes = 0
        self.contents: dict[str, bytes] = {}

    def PushMessages(self, request: PushAppMessagesRequest) -> PushAppMessagesResponse:
        """As ``RuntimeHttpClient``, which asks for every object."""
        self.bytes += len(request.SerializeToString())
        (tree,) = request.message_object_trees
        return PushAppMessagesResponse(objects_to_push=[each.object_id for each in iterate_object_tree(tree)])

    def PushObject(self, request: PushObjectRequest) -> PushObjectResponse:
        """As ``RuntimeHttpClient``."""
        self.bytes += len(request.SerializeToString())
        self.contents[request.object_id] = request.object_content
        return PushObjectResponse(stored=True)


def _push_once(reply: Message) -> None:
    """What ``push_message`` needs to do: it also computes each object's id, and so its bytes, again and again."""
    network = InMemoryNetwork()
    with no_object_id_recompute():
        push_objects(
            get_all_nested_objects(reply),
            lambda key, content: network.PushObject(PushObjectRequest(object_id=key, object_content=content)),
        )


class Node:
    """One client: its app trains nothing and returns its update; the mod does the rest."""

    def __init__(self, number: int, update: NDArray) -> None:
        self.number, self._update = number, update
        self.context = Context(1, number, {}, RecordDict(), {})
        self.app_seconds = 0.0

    def app(self, _: Message, __: Context) -> Message:
        """The app behind the mod. Packing its result is training's work, not the protocol's: not timed."""
        start = time.process_time()
        result = FitRes(Status(Code.OK, ""), ndarrays_to_parameters([self._update]), EXAMPLES, {})
        content = recorddict_compat.fitres_to_recorddict(result, keep_input=False)
        reply = Message(content, dst_node_id=0, message_type=MessageType.TRAIN)
        self.app_seconds += time.process_time() - start
        return reply


class InProcessGrid:
    """Hands messages to the nodes: the one method of a grid that the workflow calls.

    Keeps the seconds and bytes of each node, and when each stage began and ended, for the server's between.
    """

    def __init__(self, nodes: Iterable[Node], done: Repetition) -> None:
        self._nodes = {node.number: node for node in nodes}
        self._done = done
        self.mod_seconds = dict.fromkeys(self._nodes, 0.0)
        self.push_once_seconds = dict.fromkeys(self._nodes, 0.0)
        self.push_seconds = dict.fromkeys(self._nodes, 0.0)
        self.bytes = dict.fromkeys(self._nodes, 0)
        self.inflate_seconds: list[float] = []
        self.stages: list[tuple[float, float]] = []

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """One stage of the protocol."""
        start = time.process_time()
        pushed = [self._client(message) for message in messages]
        before = time.process_time()
        replies = [inflate_object_from_contents(message_id, contents) for message_id, contents in pushed]
        self.inflate_seconds.append(time.process_time() - before)
        self.stages.append((start, time.process_time()))
        return replies

    def _client(self, message: Message) -> tuple[str, dict[str, bytes]]:
        node, network = self._nodes[message.metadata.dst_node_id], InMemoryNetwork()
        # The workflow gives several nodes one content, and the mod takes it apart.
        sent = {key: each.deflate() for key, each in get_all_nested_objects(message).items()}
        message = inflate_object_from_contents(message.object_id, sent)
        with self._done.peak("client"):
            start, app = time.process_time(), node.app_seconds
            reply = secaggplus_mod(message, node.context, node.app)
            self.mod_seconds[node.number] += time.process_time() - start - (node.app_seconds - app)
            start = time.process_time()
            _push_once(reply)
            self.push_once_seconds[node.number] += time.process_time() - start
        start = time.process_time()
        push_message(network, reply, node.context)
        self.push_seconds[node.number] += time.process_time() - start
        self.bytes[node.number] += network.bytes
        return reply.metadata.message_id, network.contents


class OneResult(FedAvg):
    """Picks all nodes, and takes the workflow's result as it is.

    Flower's own strategies then average ten copies of it: a leftover of its interface that we don't count.
    """

    def __init__(self, proxies: list[GridClientProxy]) -> None:
        super().__init__()
        self._proxies = proxies
        self.aggregate: Parameters | None = None

    def configure_fit(
        self, server_round: int, parameters: Parameters, client_manager: object
    ) -> list[tuple[ClientProxy, FitIns]]:
        """Everyone. No model goes down: nobody's figures count it."""
        return [(proxy, FitIns(Parameters([], ""), {})) for proxy in self._proxies]

    def aggregate_fit(
        self, server_round: int, results: list[tuple[ClientProxy, FitRes]], failures: list[object]
    ) -> tuple[Parameters | None, dict[str, object]]:
        """The unmasked mean."""
        if failures:
            raise RuntimeError(f"Flower's round had {len(failures)} failures, the first: {failures[0]}")
        self.aggregate = results[0][1].parameters
        return None, {}


class FlowerRound:
    """Rounds with the same updates and fresh keys."""

    def __init__(self, parameters: int, sites: int) -> None:
        generator = np.random.default_rng(parameters)
        self._update = generator.normal(0, 0.05, parameters).astype(np.float32)
        self._sites = sites

    def repeat(self, done: Repetition) -> None:
        """A round of all clients. Client figures are the median client's."""
        nodes = [Node(number, self._update) for number in range(1, self._sites + 1)]
        grid = InProcessGrid(nodes, done)
        strategy = OneResult([GridClientProxy(node.number, grid, 1) for node in nodes])
        state = RecordDict()
        state.config_records[MAIN_CONFIGS_RECORD] = ConfigRecord({Key.CURRENT_ROUND: 1})
        state.array_records[MAIN_PARAMS_RECORD] = recorddict_compat.parameters_to_arrayrecord(
            Parameters([], ""), keep_input=False
        )
        context = LegacyContext(Context(1, 0, {}, state, {}), strategy=strategy)
        workflow = SecAggPlusWorkflow(self._sites, round(THRESHOLD * self._sites))
        workflow(grid, context)
        end = time.process_time()
        if len(grid.stages) != len(STAGES) or strategy.aggregate is None:
            raise RuntimeError(f"Flower's round stopped after {STAGES[len(grid.stages) - 1]}")
        self._check(strategy.aggregate)
        collected, unmasked = grid.stages[2][1], grid.stages[3]
        done.seconds["encrypt_only"] = statistics.median(grid.mod_seconds.values())
        done.seconds["serialise"] = statistics.median(grid.push_once_seconds.values())
        for name, serialising in (
            ("encrypt", grid.push_once_seconds),
            ("encrypt_as_released", grid.push_seconds),
        ):
            done.seconds[name] = statistics.median(
                seconds + serialising[number] for number, seconds in grid.mod_seconds.items()
            )
        done.seconds["add"] = grid.inflate_seconds[2] + unmasked[0] - collected
        done.seconds["decrypt"] = grid.inflate_seconds[3] + end - unmasked[1]
        done.bytes["up"] = max(grid.bytes.values())

    def _check(self, aggregate: Parameters) -> None:
        error = float(np.abs(parameters_to_ndarrays(aggregate)[0] - self._update).max())
        if not error < LARGEST_ERROR:
            raise RuntimeError(f"Flower's mean is off by {error:.3g}: this is not what it does")


def prepare(arguments: argparse.Namespace) -> Callable[[Repetition], None]:
    """Flower's side of ``serve``."""
    logging.getLogger("flwr").setLevel(logging.ERROR)
    # Flower sets these from the command line of the process that runs an app.
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 0, 1
    return FlowerRound(arguments.parameters, arguments.sites).repeat


if __name__ == "__main__":
    serve(prepare)
