"""Security of the embedded server: TLS, a bearer token, and the rule for addresses that other machines can reach."""

from __future__ import annotations

import hmac
import ipaddress
import ssl
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from keras_ranking.serving.protocol.errors import ServingError
from keras_ranking.serving.server.access_log import AccessLog

SHORTEST_TOKEN = 16


@dataclass(frozen=True)
class Tls:
    """Certificate and key of a server.

    Args:
        certificate: PEM file, the whole chain.
        key: PEM file of its private key.
        client_ca: PEM file of the authority whose certificates clients must present; None: no client certificates.

    Raises:
        FileNotFoundError: a missing file.

    Example:
        >>> kr.serving.Tls(certificate="chain.pem", key="key.pem")
        Traceback (most recent call last):
        ...
        FileNotFoundError: no such file for TLS: 'chain.pem'
    """

    certificate: str | Path
    key: str | Path
    client_ca: str | Path | None = None

    def __post_init__(self) -> None:
        for path in (self.certificate, self.key, self.client_ca):
            if path is not None and not Path(path).is_file():
                raise FileNotFoundError(f"no such file for TLS: '{path}'")

    def context(self) -> ssl.SSLContext:
        """The SSL context of the REST listener.

        Raises:
            ValueError: files that cannot be used.
        """
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        try:
            context.load_cert_chain(self.certificate, self.key)
            if self.client_ca is not None:
                context.load_verify_locations(self.client_ca)
                context.verify_mode = ssl.CERT_REQUIRED
        except (ssl.SSLError, OSError) as error:
            raise ValueError(f"the certificate, key or client authority cannot be used: {error}") from error
        return context

    def credentials(self) -> Any:
        """The server credentials of the gRPC listener."""
        import grpc

        pair = (Path(self.key).read_bytes(), Path(self.certificate).read_bytes())
        authority = Path(self.client_ca).read_bytes() if self.client_ca is not None else None
        return grpc.ssl_server_credentials([pair], authority, require_client_auth=authority is not None)


@dataclass(frozen=True)
class Access:
    """Access rules of a server.

    Attributes:
        token: token of every call, as `Authorization: Bearer TOKEN`, except health checks; None: no token. Without TLS it is sent
            in plain text.
        tls: certificate and key of both ports, and the authority of client certificates if those are required; None: without TLS.
        insecure: allow an address that other machines can reach, without a token and without client certificates.
        access_log: a sample of the requests on disk, see `AccessLog`; None: no log.

    Raises:
        ValueError: a token that is too short, or not ASCII.

    Example:
        >>> kr.serving.Access(token="a-long-secret-token").insecure
        False
    """

    token: str | None = field(default=None, repr=False)
    tls: Tls | None = None
    insecure: bool = False
    access_log: AccessLog | None = None

    def __post_init__(self) -> None:
        if self.token is not None and (len(self.token) < SHORTEST_TOKEN or not self.token.isascii() or self.token != self.token.strip()):
            raise ValueError(f"`token` must be at least {SHORTEST_TOKEN} ASCII characters without spaces around them.")

    def check_host(self, host: str) -> None:
        """Check that other machines cannot call without a token or a client certificate, unless `insecure` allows it.

        Raises:
            ValueError: an address that other machines can reach, without a token and without client certificates.
        """
        known = self.token is not None or (self.tls is not None and self.tls.client_ca is not None)
        if not (known or self.insecure or _is_loopback(host)):
            raise ValueError(
                f"`host` '{host}' can be reached from other machines: give a `token` or a `client_ca` (or say `insecure=True`). "
                "Received: neither"
            )

    def check(self, authorization: str | bytes | None) -> None:
        """Check the token of a call, in constant time.

        Raises:
            ServingError: UNAUTHENTICATED.
        """
        if self.token is None:
            return
        given = authorization.encode(errors="surrogateescape") if isinstance(authorization, str) else authorization or b""
        scheme, _, value = given.partition(b" ")
        if scheme.lower() != b"bearer" or not hmac.compare_digest(value.strip(), self.token.encode()):
            raise ServingError("UNAUTHENTICATED", "this server needs a token: Authorization: Bearer TOKEN")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"
