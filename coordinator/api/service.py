"""Which handler serves which RPC, and the server that they are served on."""

from __future__ import annotations

from collections.abc import Mapping

import grpc

from cipherward.coordinator.api.dispatch import Streaming, Unary
from cipherward.coordinator.api.downloads import Downloads
from cipherward.coordinator.api.operators import Operators
from cipherward.coordinator.api.policy import (
    HANDSHAKE_SECONDS,
    MAX_CONNECTIONS,
    MAX_MESSAGE,
    MAX_METADATA,
    MAX_OPEN_CALLS,
    MAX_STREAMS,
)
from cipherward.coordinator.api.posts import Posts
from cipherward.coordinator.api.quorum_downloads import QuorumDownloads
from cipherward.coordinator.api.quorum_posts import QuorumPosts
from cipherward.coordinator.api.relay import Relay
from cipherward.coordinator.api.uploads import Uploads
from cipherward.coordinator.api.watch import Watch
from cipherward.coordinator.daemon.core import Core

# When they were chosen, 200 concurrent uploads of 1 M parameters took 130 MB with these and 973 MB without.
OPTIONS = (
    ("grpc.http2.bdp_probe", 0),
    ("grpc.http2.lookahead_bytes", 131072),
    ("grpc.max_receive_message_length", MAX_MESSAGE),
    ("grpc.max_send_message_length", -1),
    ("grpc.so_reuseport", 0),  # a port in use is an error, not shared
    # Sites' watch streams are quiet for long; a dead peer is noticed within a minute.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.http2.ping_timeout_ms", 20_000),  # gRPC waits for the longer of the two, by default a minute
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),
    ("grpc.max_metadata_size", MAX_METADATA),
    ("grpc.absolute_max_metadata_size", MAX_METADATA),
    ("grpc.max_concurrent_streams", MAX_STREAMS),
    ("grpc.max_allowed_incoming_connections", MAX_CONNECTIONS),
    ("grpc.server_handshake_timeout_ms", 1000 * HANDSHAKE_SECONDS),
)


def implementation(core: Core) -> Mapping[str, Unary | Streaming]:
    """Handlers by the name of their RPC."""
    downloads, posts, uploads = Downloads(core), Posts(core), Uploads(core)
    quorum, members = QuorumPosts(core), QuorumDownloads(core)
    relay, operators, watch = Relay(core), Operators(core), Watch(core)
    return {
        "Hello": downloads.hello,
        "GetStatusList": downloads.status_list,
        "GetManifest": downloads.manifest,
        "GetInitialWeights": downloads.initial_weights,
        "GetRecord": downloads.record,
        "WatchWork": watch.work,
        "PostJoin": posts.join,
        "GetUploadState": uploads.state,
        "Upload": uploads.upload,
        "PostCommit": posts.commit,
        "GetShares": members.shares,
        "PostAcknowledgement": quorum.acknowledgement,
        "PostAnswer": quorum.answer,
        "GetAnswers": members.answers,
        "GetSum": downloads.sum,
        "GetUpdateChunks": members.update_chunks,
        "PostSumCheck": quorum.sum_check,
        "GetSumChecks": members.sum_checks,
        "PostModelReport": posts.report,
        "GetModelReports": downloads.reports,
        "PutRelay": relay.put,
        "GetRelay": relay.get,
        "RequestModel": relay.request_model,
        "StartStudy": operators.start,
        "AbortStudy": operators.abort,
        "GetStudyStatus": operators.status,
        "WatchStudy": watch.study,
    }


def new_server() -> grpc.aio.Server:
    """A server with the measured settings, and the policy table's limits on connections."""
    return grpc.aio.server(options=OPTIONS, maximum_concurrent_rpcs=MAX_OPEN_CALLS)
