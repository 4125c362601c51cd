"""An S3 for tests: objects in memory behind the few requests that pyarrow makes; no signature is checked."""

import io
import re
import threading
from collections import Counter
from contextlib import contextmanager
from hashlib import md5
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

_ERROR = '<?xml version="1.0"?><Error><Code>{0}</Code><Message>{0}</Message></Error>'


class FakeS3:
    """What it holds, and what it was asked.

    :param buckets: Those that there are.
    """

    def __init__(self, *buckets):
        self.buckets = set(buckets)
        self.objects = {}
        self.uploads = {}
        self.requests = Counter()
        self.refuses = ""
        self.url = ""

    def names(self, bucket):
        return sorted(key.removeprefix(f"{bucket}/") for key in self.objects)


def _unchunked(file):
    """Read pieces, each behind its length in hex and perhaps a signature."""
    pieces = []
    while n_bytes := int(file.readline().partition(b";")[0], 16):
        pieces.append(file.read(n_bytes))
        file.readline()
    while file.readline().strip():  # checksums
        pass
    return b"".join(pieces)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def handle_one_request(self):
        try:
            super().handle_one_request()
        except ConnectionError:  # the client was killed
            self.close_connection = True

    def log_message(self, *_):
        pass

    def _answer(self, status, body=b"", **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        if "Content_Length" not in headers:
            self.send_header("Content-Length", str(len(body)))
        self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _fail(self, status, code):
        self._answer(status, _ERROR.format(code).encode(), Content_Type="application/xml")

    def _body(self):
        if self.headers.get("Transfer-Encoding") == "chunked":
            content = _unchunked(self.rfile)
        else:
            content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        is_twice = "aws-chunked" in self.headers.get("Content-Encoding", "")
        return _unchunked(io.BytesIO(content)) if is_twice else content

    def _do(self):
        store, parts = self.server.store, urlsplit(self.path)
        key, query = unquote(parts.path).strip("/"), parse_qs(parts.query, keep_blank_values=True)
        body = self._body()
        store.requests[f"{self.command} {key}"] += 1
        if store.refuses:
            return self._fail(403, store.refuses)
        if key.partition("/")[0] not in store.buckets:
            return self._fail(404, "NoSuchBucket")
        return getattr(self, f"_{self.command.lower()}")(store, key, query, body)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _do

    def _put(self, store, key, query, body):
        if "uploadId" in query:
            store.uploads[query["uploadId"][0]][int(query["partNumber"][0])] = body
        else:
            store.objects[key] = body
        self._answer(200, ETag=f'"{md5(body).hexdigest()}"')

    def _post(self, store, key, query, _):
        bucket, _, name = key.partition("/")
        if "uploads" in query:
            upload = f"u{len(store.uploads)}"
            store.uploads[upload] = {}
            body = f"<UploadId>{upload}</UploadId>"
            root = "InitiateMultipartUploadResult"
        else:
            pieces = store.uploads.pop(query["uploadId"][0])
            store.objects[key] = b"".join(pieces[number] for number in sorted(pieces))
            body, root = '<ETag>"x"</ETag>', "CompleteMultipartUploadResult"
        body = f"<{root}><Bucket>{bucket}</Bucket><Key>{escape(name)}</Key>{body}</{root}>"
        self._answer(200, body.encode(), Content_Type="application/xml")

    def _delete(self, store, key, _query, _body):
        store.objects.pop(key, None)
        self._answer(204)

    def _get(self, store, key, query, _):
        if "list-type" in query:
            return self._list(store, key, query)
        if key not in store.objects:
            return self._fail(404, "NoSuchKey") if "/" in key else self._answer(200)
        content, status, extra = store.objects[key], 200, {}
        if found := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            first, last = int(found[1]), int(found[2] or len(content) - 1)
            extra = {"Content_Range": f"bytes {first}-{last}/{len(content)}"}
            content, status = content[first : last + 1], 206
        extra["ETag"] = f'"{md5(content).hexdigest()}"'
        extra["Last_Modified"] = "Wed, 21 Oct 2015 07:28:00 GMT"
        return self._answer(status, content, Content_Length=len(content), **extra)

    _head = _get

    def _list(self, store, bucket, query):
        prefix, ends = query.get("prefix", [""])[0], query.get("delimiter", [""])[0]
        files, folders = [], set()
        for name in store.names(bucket):
            if not name.startswith(prefix):
                continue
            rest = name[len(prefix) :]
            if ends and ends in rest:
                folders.add(prefix + rest.partition(ends)[0] + ends)
            else:
                files.append((name, len(store.objects[f"{bucket}/{name}"])))
        rows = "".join(
            f"<Contents><Key>{escape(name)}</Key><Size>{size}</Size><ETag>x</ETag>"
            "<LastModified>2015-10-21T07:28:00.000Z</LastModified></Contents>"
            for name, size in files
        ) + "".join(
            f"<CommonPrefixes><Prefix>{escape(name)}</Prefix></CommonPrefixes>"
            for name in sorted(folders)
        )
        n_keys = len(files) + len(folders)
        body = (
            f"<ListBucketResult><Name>{bucket}</Name><KeyCount>{n_keys}</KeyCount><IsTruncated>false"
            f"</IsTruncated>{rows}</ListBucketResult>"
        )
        self._answer(200, body.encode(), Content_Type="application/xml")


@contextmanager
def open_s3(*buckets):
    """Run an S3 with buckets; gives what it holds, with its address as `url`."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.store = store = FakeS3(*buckets)
    store.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield store
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
