"""Who may call the embedded server, and over what: TLS, a bearer token, and the rule for addresses beyond this machine."""

from __future__ import annotations

import hmac
import ipaddress
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from keras_ranking.serving.protocol.errors import ServingError

SHORTEST_TOKEN = 16


@dataclass(frozen=True)
class Tls:
    """Certificate and key of a server.

    Args:
        certificate: PEM file, the whole chain.
        key: PEM file of its private key.
        client_ca: PEM file of the authority whose certificates clients must show; None: none are asked for.

    Raises:
        FileNotFoundError: a file that is not there.
    """

    certificate: str | Path
    key: str | Path
    client_ca: str | Path | None = None

    def __post_init__(self) -> None:
        for path in (self.certificate, self.key, self.client_ca):
            if path is not None and not Path(path).is_file():
                raise FileNotFoundError(f"no such file for TLS: '{path}'")

    def context(self) -> ssl.SSLContext:
        """For the REST door.

        Raises:
            ValueError: files that are not what they should be.
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
        """For the gRPC door."""
        import grpc

        pair = (Path(self.key).read_bytes(), Path(self.certificate).read_bytes())
        authority = Path(self.client_ca).read_bytes() if self.client_ca is not None else None
        return grpc.ssl_server_credentials([pair], authority, require_client_auth=authority is not None)


@dataclass(frozen=True)
class Access:
    """What a server asks of its callers.

    Args:
        token: what calls must carry as `Authorization: Bearer TOKEN`; None: nothing.
        tls: None: in the clear.
        insecure: listen beyond this machine without knowing who calls.
    """

    token: str | None = None
    tls: Tls | None = None
    insecure: bool = False

    def __post_init__(self) -> None:
        if self.token is not None and (len(self.token) < SHORTEST_TOKEN or not self.token.isascii() or self.token != self.token.strip()):
            raise ValueError(f"`token` must be at least {SHORTEST_TOKEN} ASCII characters without spaces around them.")

    def check_host(self, host: str) -> None:
        """Raise unless callers from elsewhere have to show who they are, or `insecure` says that they need not.

        Raises:
            ValueError: an address beyond this machine, without a token and without client certificates.
        """
        known = self.token is not None or (self.tls is not None and self.tls.client_ca is not None)
        if not (known or self.insecure or _is_loopback(host)):
            raise ValueError(
                f"`host` '{host}' can be reached from other machines: give a `token` or a `client_ca` (or say `insecure=True`). "
                "Received: neither"
            )

    def check(self, authorization: str | bytes | None) -> None:
        """Raise unless a call carries the token; the comparison takes the same time whatever is wrong.

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
