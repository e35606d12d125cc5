"""A WebHDFS proxy that injects faults: it stands before the NameNode and, by rewriting redirects, before the DataNodes.

A rule sees each request and may answer with a fault. Faults: ``standby`` (403), ``error`` (500 without a body that anybody
understands), ``lost_reply`` (the request is carried out, the answer is not sent), ``cut`` (the answer ends after so many
bytes), ``drop`` (an upload ends after so many bytes, the connection closes), ``delay`` and ``stall`` (seconds; a stall sends
the head of the answer first), ``unresolvable`` (the redirect names a host that nobody knows). ``ignored`` are options that
it leaves out on the way, as HttpFS does not know them; ``page`` a status and a web page that it answers instead.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, parse_qsl, urlencode, urlsplit


@dataclass(frozen=True)
class Request:
    method: str
    op: str
    path: str
    datanode: bool
    number: int
    """How many requests of this op to this kind of node came before."""


@dataclass(frozen=True)
class Fault:
    kind: str
    amount: float = 0


Rule = Callable[[Request], Fault | None]


class Proxy:
    def __init__(self, namenode: int) -> None:
        self.namenode = namenode
        self.rule: Rule = lambda _: None
        self.ignored: set[str] = set()
        self.page: tuple[int, bytes] | None = None
        self.seen: list[Request] = []
        self.faults: list[tuple[Request, Fault]] = []
        self._counts: dict[tuple[str, bool], int] = {}
        self._lock = threading.Lock()
        proxy = self

        class Handler(_Handler):
            owner = proxy

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.port = self.server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self._thread.start()

    def decide(self, method: str, op: str, path: str, datanode: bool) -> Fault | None:
        with self._lock:
            number = self._counts.get((op, datanode), 0)
            self._counts[op, datanode] = number + 1
            request = Request(method, op, path, datanode, number)
            self.seen.append(request)
            fault = self.rule(request)
            if fault:
                self.faults.append((request, fault))
            return fault

    def reset(self, rule: Rule) -> None:
        with self._lock:
            self._counts.clear()
            self.seen.clear()
            self.faults.clear()
            self.rule = rule

    def remove(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self._thread.join()


class _Handler(BaseHTTPRequestHandler):
    owner: Proxy
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *_: object) -> None:
        pass

    def _serve(self) -> None:
        parts = urlsplit(self.path)
        datanode = parts.path.startswith("/dn/")
        port = int(parts.path.split("/")[2]) if datanode else self.owner.namenode
        path = "/" + "/".join(parts.path.split("/")[3:]) if datanode else parts.path
        op = parse_qs(parts.query).get("op", [""])[0]
        fault = self.owner.decide(self.command, op, path, datanode)
        kind = fault.kind if fault else ""
        if self.owner.page:
            self._drain()
            self._answer(self.owner.page[0], [("Content-Type", "text/html;charset=utf-8")], self.owner.page[1])
            return
        if kind == "delay":
            time.sleep(fault.amount)
        if kind in ("standby", "error"):
            self._drain()
            body = b"<html>out of order</html>"
            if kind == "standby":
                exception = {
                    "exception": "StandbyException",
                    "message": "Operation category READ is not supported in state standby",
                }
                body = json.dumps({"RemoteException": exception}).encode()
            self._answer(403 if kind == "standby" else 500, [("Content-Type", "application/json")], body)
            return
        upstream = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        try:
            options = [option for option in parse_qsl(parts.query, True) if option[0] not in self.owner.ignored]
            query = f"{path}?{urlencode(options) if self.owner.ignored else parts.query}"
            upstream.putrequest(self.command, query, skip_host=True, skip_accept_encoding=True)
            upstream.putheader("Host", f"127.0.0.1:{port}")
            chunked = self.headers.get("Transfer-Encoding") == "chunked"
            if chunked:
                upstream.putheader("Transfer-Encoding", "chunked")
            elif self.command in ("PUT", "POST"):
                upstream.putheader("Content-Length", self.headers.get("Content-Length", "0"))
            if self.headers.get("Content-Type"):
                upstream.putheader("Content-Type", self.headers["Content-Type"])
            upstream.endheaders()
            if not self._forward_body(upstream, chunked, int(fault.amount) if kind == "drop" else None):
                upstream.close()
                self._hang_up()
                return
            answer = upstream.getresponse()
            self._relay(answer, fault)
        except (OSError, http.client.HTTPException):
            self._hang_up()
        finally:
            upstream.close()

    do_GET = do_PUT = do_POST = do_DELETE = _serve

    def _forward_body(self, upstream: http.client.HTTPConnection, chunked: bool, limit: int | None) -> bool:
        sent = 0
        for piece in self._body(chunked):
            if limit is not None and sent + len(piece) > limit:
                if chunked and limit > sent:
                    part = piece[: limit - sent]
                    upstream.send(b"%x\r\n%s\r\n" % (len(part), part))
                return False
            upstream.send(b"%x\r\n%s\r\n" % (len(piece), piece) if chunked else piece)
            sent += len(piece)
        if limit is not None:
            return False
        if chunked:
            upstream.send(b"0\r\n\r\n")
        return True

    def _body(self, chunked: bool):
        if not chunked:
            left = int(self.headers.get("Content-Length") or 0)
            while left and (piece := self.rfile.read(min(left, 1 << 16))):
                left -= len(piece)
                yield piece
            return
        while True:
            line = self.rfile.readline()
            if not line:
                raise OSError("the client hung up in mid-upload")
            size = int(line.split(b";")[0], 16)
            piece = self.rfile.read(size)
            self.rfile.readline()
            if len(piece) < size:
                raise OSError("the client hung up in mid-upload")
            if not size:
                return
            yield piece

    def _drain(self) -> None:
        for _ in self._body(self.headers.get("Transfer-Encoding") == "chunked"):
            pass

    def _relay(self, answer: http.client.HTTPResponse, fault: Fault | None) -> None:
        kind = fault.kind if fault else ""
        headers = []
        length = None
        for name, value in answer.getheaders():
            if name.lower() == "location":
                target = urlsplit(value)
                if kind == "unresolvable":
                    headers.append((name, value.replace("127.0.0.1:", "datanode.invalid:", 1)))
                    continue
                value = f"{self.owner.url}/dn/{target.port}{target.path}?{target.query}"
            if name.lower() == "content-length":
                length = int(value)
            if name.lower() not in ("transfer-encoding", "connection", "content-length"):
                headers.append((name, value))
        if kind == "lost_reply":
            answer.read()
            self._hang_up()
            return
        if length is None and (kind or answer.getheader("Transfer-Encoding") == "chunked"):
            self._answer(answer.status, headers, answer.read())
            return
        if length is None:
            self._answer(answer.status, headers, answer.read())
            return
        self.send_response(answer.status)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("Content-Length", str(length))
        self.end_headers()
        left = int(fault.amount) if kind == "cut" else length
        if kind == "stall":
            self.wfile.write(answer.read(1))
            self.wfile.flush()
            time.sleep(fault.amount)
            self._hang_up()
            return
        while left and (piece := answer.read(min(left, 1 << 16))):
            self.wfile.write(piece)
            left -= len(piece)
        if kind == "cut":
            self.wfile.flush()
            self._hang_up()

    def _answer(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _hang_up(self) -> None:
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)
