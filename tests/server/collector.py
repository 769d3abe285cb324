"""A collector of spans that a test starts."""

import base64
import gzip
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from google.protobuf import json_format
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


class Collector(ThreadingHTTPServer):
    """An OTLP receiver over HTTP: protobuf from Python's SDK, JSON from Triton's."""

    def __init__(self):
        self.spans = []
        super().__init__(("127.0.0.1", 0), Receiver)
        self.url = f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def take(self, body, kind):
        request = json.loads(body) if "json" in kind else read_protobuf(body)
        for resource in request["resourceSpans"]:
            facts = read_attributes(resource["resource"])
            for scope in resource["scopeSpans"]:
                self.spans += [{**span, "service": facts["service.name"]} for span in scope["spans"]]

    def of(self, trace):
        return [span for span in list(self.spans) if span["traceId"] == trace]


class Receiver(BaseHTTPRequestHandler):
    def do_POST(self):
        assert self.path == "/v1/traces"
        body = self.rfile.read(int(self.headers["content-length"]))
        if self.headers.get("content-encoding") == "gzip":
            body = gzip.decompress(body)
        self.server.take(body, self.headers["content-type"])
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *args):
        pass


def read_protobuf(body):
    request = json.loads(json_format.MessageToJson(ExportTraceServiceRequest.FromString(body)))
    for span in (s for r in request["resourceSpans"] for scope in r["scopeSpans"] for s in scope["spans"]):
        for name in ("traceId", "spanId", "parentSpanId"):
            span[name] = base64.b64decode(span.get(name, "")).hex()
    return request


def read_attributes(holder):
    return {a["key"]: next(iter(a["value"].values())) for a in holder.get("attributes", [])}
