"""Optuna's dashboard of a study, for this machine alone."""

from __future__ import annotations

import threading
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from keras_ranking.tuning.store import Store

HOST = "127.0.0.1"
PORT = 8080
_TEXT = ("Content-Type", "text/plain; charset=utf-8")


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _Quiet(WSGIRequestHandler):
    def log_message(self, format: str, *arguments: Any) -> None:
        """Nothing: a line for each request hides those of the trials."""


class Dashboard:
    """A server of the dashboard, on 127.0.0.1: it has no passwords, and who reaches it can delete studies.

    Args:
        store: of the study.
        port: to listen on; 0: any free one.

    Attributes:
        url: where a browser finds it.

    Raises:
        ModuleNotFoundError: optuna-dashboard is not installed, naming the extra.
        OSError: the port is in use.
    """

    def __init__(self, store: Store, port: int = PORT) -> None:
        try:
            from optuna_dashboard import wsgi
        except ModuleNotFoundError as error:
            text = f"the dashboard needs the package '{error.name}', which is not installed: pip install 'keras-ranking[tune]'"
            raise ModuleNotFoundError(text, name=error.name) from error
        app = _local_names(wsgi(store.storage))
        self._server = make_server(HOST, port, app, server_class=_Server, handler_class=_Quiet)
        self.url = f"http://{HOST}:{self._server.server_port}/"

    def start(self) -> None:
        """Serve in a thread."""
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def serve(self) -> None:
        """Serve until Ctrl-C."""
        self._server.serve_forever()

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()


def _local_names(app: Any) -> Any:
    """Refuse requests by another name than this machine's: a page of another site could give its own name this address."""

    def checked(environment: Any, start: Any) -> Any:
        host = str(environment.get("HTTP_HOST", "")).rpartition(":")[0] or str(environment.get("HTTP_HOST", ""))
        if host not in (HOST, "localhost"):
            start("403 Forbidden", [_TEXT])
            return [b"this dashboard is for this machine alone"]
        return app(environment, start)

    return checked
