"""TLS for gRPC, always mutual. Only builds credentials from bytes: opens nothing."""

from __future__ import annotations

import grpc


def server_credentials(*, key_pem: bytes, certificate_pem: bytes, root_pem: bytes) -> grpc.ServerCredentials:
    """For the coordinator: a client without a certificate of this root does not get past the handshake.

    Who the client is, and whether its certificate still holds, ``peers.PeerVerifier`` says on each call.
    """
    return grpc.ssl_server_credentials(
        [(key_pem, certificate_pem)], root_certificates=root_pem, require_client_auth=True
    )


def channel_credentials(
    *, key_pem: bytes, certificate_pem: bytes, root_pem: bytes
) -> grpc.ChannelCredentials:
    """For sites and operators: the server must show a coordinator's certificate of this root for the host
    that was dialled. No other root counts, and members' certificates are not for servers."""
    return grpc.ssl_channel_credentials(
        root_certificates=root_pem, private_key=key_pem, certificate_chain=certificate_pem
    )
