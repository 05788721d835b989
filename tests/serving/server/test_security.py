"""Security of the listeners: token and TLS."""

from __future__ import annotations

import ssl
import subprocess

import pytest

from keras_ranking.serving import ClientTls, Retry, ServingError, Tls, serve
from keras_ranking.serving.server.security import Access
from tests.serving.calling import connect, frames
from tests.serving.server.listening import TOKEN, call, health, serving

grpc = pytest.importorskip("grpc")

pytestmark = pytest.mark.one_backend


@pytest.fixture(scope="module")
def guarded(first):
    with serving(first, token=TOKEN, name="ranker") as running:
        yield running


@pytest.mark.parametrize("header", [None, "Bearer wrong horse battery", f"Basic {TOKEN}", "Bearer", f"Bearer {TOKEN}x", "Bearer \xff"])
def test_without_the_token(guarded, header):
    headers = {} if header is None else {"Authorization": header}
    for path in ("/v1/models/ranker", "/v1/models/ranker:predict", "/monitoring/prometheus/metrics", "/v1/models/ranker/metadata"):
        status, reply, body = call(f"http://127.0.0.1:{guarded.rest_port}{path}", {} if "predict" in path else None, headers)
        assert (status, reply["WWW-Authenticate"]) == (401, "Bearer") and b"needs a token" in body
    if header is None or header.isascii():
        token = (header or " ").partition(" ")[2] or None
        with connect(guarded, "grpc", token=token if header != f"Basic {TOKEN}" else None) as client, pytest.raises(ServingError) as caught:
            client.score(*frames(1, 1))
        assert caught.value.code == "UNAUTHENTICATED"


@pytest.mark.parametrize("protocol", ["grpc", "rest"])
def test_with_the_token(guarded, protocol):
    with connect(guarded, protocol, token=TOKEN) as client:
        assert client.score(*frames(3, 2)).shape == (2, 2)


def test_probes_need_no_token(guarded):
    assert call(f"http://127.0.0.1:{guarded.rest_port}/healthz")[0] == 200
    assert call(f"http://127.0.0.1:{guarded.rest_port}/readyz")[0] == 200
    with grpc.insecure_channel(f"127.0.0.1:{guarded.grpc_port}") as channel:
        assert {health(channel, name) for name in ("", "ranker", "tensorflow.serving.PredictionService")} == {"SERVING"}
        with pytest.raises(grpc.RpcError) as caught:
            health(channel, "other")
        assert caught.value.code() == grpc.StatusCode.NOT_FOUND


def test_beyond_this_machine(first):
    """Nothing listens for other machines by mistake."""
    for host in ("0.0.0.0", "192.0.2.1", "::", "example.org"):
        with pytest.raises(ValueError, match="can be reached from other machines: give a `token` or a `client_ca`"):
            serve(first.version.parent, host=host)
        Access(token=TOKEN).check_host(host)
        Access(insecure=True).check_host(host)
    for host in ("127.0.0.1", "127.8.0.1", "::1", "localhost"):
        Access().check_host(host)
    with pytest.raises(ValueError, match="`token` must be at least 16 ASCII characters"):
        serve(first.version.parent, token="short")
    with pytest.raises(FileNotFoundError, match="no such file for TLS: 'nothing.pem'"):
        Tls("nothing.pem", "nothing.key")


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    """An authority, and a server's and a client's certificate that it signed."""
    folder = tmp_path_factory.mktemp("tls")

    def openssl(*arguments):
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)

    new = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
    openssl("req", "-x509", *new, "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=test authority")
    for who in ("server", "client"):
        openssl("req", *new[:-2], "-keyout", f"{who}.key", "-out", f"{who}.csr", "-subj", f"/CN={who}")
        (folder / "names").write_text("subjectAltName=IP:127.0.0.1,DNS:localhost\n")
        signing = ["-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2", "-extfile", "names"]
        openssl("x509", "-req", "-in", f"{who}.csr", *signing, "-out", f"{who}.pem")
    return folder


@pytest.mark.parametrize("mutual", [False, True])
def test_tls(first, certificates, mutual):
    path = certificates.joinpath
    tls = Tls(path("server.pem"), path("server.key"), path("ca.pem") if mutual else None)
    known = ClientTls(path("ca.pem"), *((path("client.pem"), path("client.key")) if mutual else ()))
    untrusted = [False, True] + ([ClientTls(path("ca.pem"))] if mutual else [])
    with serving(first, tls=tls) as running:
        for protocol in ("grpc", "rest"):
            with connect(running, protocol, tls=known) as client:
                assert client.score(*frames(3, 2)).shape == (2, 2)
            for settings in untrusted:
                with connect(running, protocol, tls=settings, retry=Retry(attempts=1), timeout=5) as client:
                    with pytest.raises(ServingError) as caught:
                        client.score(*frames(1, 1))
                    assert caught.value.code == "UNAVAILABLE"
        context = ssl.create_default_context(cafile=path("ca.pem"))
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        if not mutual:
            assert call(f"https://127.0.0.1:{running.rest_port}/healthz", context=context)[0] == 200


def test_key_of_another_certificate(first, certificates):
    with pytest.raises(ValueError, match="the certificate, key or client authority cannot be used"):
        serve(first.version.parent, rest_port=0, grpc_port=0, tls=Tls(certificates / "server.pem", certificates / "client.key"))
