# SPDX-License-Identifier: Apache-2.0
"""The metrics as OpenMetrics, by prometheus-client: over HTTP, and in a file for node_exporter."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from itertools import accumulate
from pathlib import Path
from socketserver import TCPServer, ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

import click
from prometheus_client import CollectorRegistry, make_wsgi_app
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, InfoMetricFamily
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector

from ...loaders.closing import Closing
from ...loaders.errors import GhostError
from ...schedulers import snapshot
from ...schedulers.snapshot import Snapshot
from ...schedulers.stats import Histogram
from ..output import with_remedy
from .declarations import Metric, Scope, scopes

#: Requests that are served at a time; more are turned away.
_MOST_REQUESTS = 32
#: Seconds that a client may take to send its request, or to read a part of the answer.
_PATIENCE_S = 10


class Reader:
    """Takes one snapshot at a time, for any number of threads.

    An error that comes and goes while the exporter runs is printed once, and the snapshot says "unreadable".
    """

    def __init__(self, take: Callable[[], Snapshot] = snapshot.take) -> None:
        self._take = take
        self._lock = threading.Lock()
        self._printed = ""

    def read(self) -> Snapshot:
        """The state now."""
        with self._lock:
            try:
                state, message = self._take(), ""
            except (GhostError, OSError) as error:
                state = Snapshot("unreadable")
                message = with_remedy(f"error: {error}", getattr(error, "hint", None))
            if message and message != self._printed:
                click.echo(message, err=True)
            self._printed = message
            return state


class GhostCollector(Collector):
    """What prometheus-client collects: each collection is a snapshot."""

    def __init__(self, read: Callable[[], Snapshot], *, per_cpu: bool = False) -> None:
        self._read, self._scopes = read, scopes(per_cpu=per_cpu)

    def describe(self) -> Iterator[Family]:
        """The metrics without samples, by which a scrape with ``name[]`` chooses."""
        return (_family(scope, metric) for scope in self._scopes for metric in scope.metrics)

    def collect(self) -> Iterator[Family]:
        """The metrics with their samples now; those without any are left out."""
        state = self._read()
        for scope in self._scopes:
            for metric in scope.metrics:
                family = _family(scope, metric)
                for labels, value in scope.samples(metric, state):
                    if isinstance(value, Histogram):
                        family.add_metric(labels, _buckets(value), value.sum)
                    else:
                        family.add_metric(labels, value)
                if family.samples:
                    yield family


def registry(read: Callable[[], Snapshot], *, per_cpu: bool = False) -> CollectorRegistry:
    """A registry with ghostbpf's metrics alone."""
    made = CollectorRegistry()
    made.register(GhostCollector(read, per_cpu=per_cpu))
    return made


def _family(scope: Scope, metric: Metric) -> Any:
    name = scope.prefix + metric.field
    match metric.kind:
        case "info":
            return InfoMetricFamily(name.removesuffix("_info"), metric.help, labels=scope.labels)
        case "counter":
            base = name.removesuffix("_total")
            return CounterMetricFamily(base, metric.help, labels=scope.labels, unit=_unit(base))
        case "histogram":
            return HistogramMetricFamily(name, metric.help, labels=scope.labels, unit=_unit(name))
        case _:
            return GaugeMetricFamily(name, metric.help, labels=scope.labels, unit=_unit(name))


def _buckets(histogram: Histogram) -> list[tuple[str, float]]:
    """The number of values up to the end of each bucket; the ends are the same in each scrape."""
    ends = [str(histogram.end(bucket)) for bucket in range(len(histogram.counts) - 1)]
    return list(zip([*ends, "+Inf"], accumulate(histogram.counts), strict=True))


def _unit(name: str) -> str:
    return "seconds" if name.endswith("_seconds") else ""


class HttpServer(Closing, ThreadingMixIn, WSGIServer):
    """Serves ``made`` at ``host`` and ``port``, each request by a thread of its own; raises GhostError."""

    daemon_threads = True
    request_queue_size = 16

    def __init__(self, host: str, port: int, made: CollectorRegistry) -> None:
        self._free = threading.BoundedSemaphore(_MOST_REQUESTS)
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
            self.address_family, _, _, _, address = found[0]
            super().__init__((str(address[0]), port), _Handler)
        except OSError as error:
            raise _cannot_listen(host, port, error) from None
        self.set_app(make_wsgi_app(made))

    @property
    def url(self) -> str:
        """Where the metrics are; the port is the real one if 0 was asked for."""
        host, port = map(str, self.server_address[:2])
        return f"http://{f'[{host}]' if ':' in host else host}:{port}/metrics"

    def start(self) -> None:
        """Serve from here on, in a thread."""
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def close(self) -> None:
        """Stop serving."""
        self.shutdown()
        self.server_close()

    def server_bind(self) -> None:
        """Bind the socket. The class above also asks DNS for this host's name, which can take seconds."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = map(str, self.server_address[:2])  # type: ignore[assignment]
        self.setup_environ()

    def process_request(self, request: Any, client_address: Any) -> None:
        """Start a thread for a request, unless too many are being served."""
        if self._free.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Serve one request."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Print what went wrong, unless a client has gone away or says nothing."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


class _Handler(WSGIRequestHandler):
    timeout = _PATIENCE_S

    def log_message(self, format: str, *args: object) -> None:
        """Print no line for each request."""


def _cannot_listen(host: str, port: int, error: OSError) -> GhostError:
    hints = {
        errno.EADDRINUSE: f"ss -ltnp 'sport = :{port}' names the process that has it; or another: --listen {host}:0",
        errno.EACCES: "ports below 1024 need CAP_NET_BIND_SERVICE; the default is 9901",
        errno.EADDRNOTAVAIL: "an address of this machine: ip -brief address",
    }
    return GhostError(
        f"cannot listen at {host}:{port}: {error.strerror}",
        hint=hints.get(error.errno or 0, "--listen 127.0.0.1:9901"),
    )


def write_textfile(path: Path, text: bytes) -> None:
    """Replace the file in one step: a reader sees the old or the new one, complete. Raises GhostError."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        try:
            with open(temporary, "wb") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            temporary.chmod(0o644)
            temporary.replace(path)
        except OSError:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
    except OSError as error:
        old = "; the file from before stays" if path.exists() else ""
        raise GhostError(
            f"cannot write {path}: {error.strerror}{old}",
            hint=f"df {path.parent} shows what is free; or another directory: --textfile FILE",
        ) from None
