"""Python's own client: every exchange on one connection, which must be kept."""

import http.client
import sys

host, port = sys.argv[1].split(":")
connection = http.client.HTTPConnection(host, int(port), timeout=10)


def ask(method, path, body=None, headers={}, status=200, answer=None):
    connection.request(method, path, body, headers=headers, encode_chunked="Transfer-Encoding" in headers)
    local = connection.sock.getsockname()
    response = connection.getresponse()
    got = response.read()
    assert response.status == status, (method, path, response.status, got)
    assert answer is None or got == answer, (method, path, got)
    assert connection.sock and connection.sock.getsockname() == local, "the connection was not kept"
    return response


ask("GET", "/hello", answer=b"Hello, World!")
ask("POST", "/hello", b"x" * 100_000, answer=b"Hello, World!")
ask("POST", "/hello", iter([b"a", b"b" * 70_000]), {"Transfer-Encoding": "chunked"}, answer=b"Hello, World!")
etag = ask("GET", "/digits", answer=b"0123456789").getheader("ETag")
ask("GET", "/digits", headers={"If-None-Match": etag}, status=304, answer=b"")
ask("GET", "/digits", headers={"If-Match": '"other"'}, status=412)
part = ask("GET", "/digits", headers={"Range": "bytes=2-4"}, status=206, answer=b"234")
assert part.getheader("Content-Range") == "bytes 2-4/10"
assert ask("HEAD", "/digits", answer=b"").getheader("Content-Length") == "10"
ask("GET", "/absent", status=404)
print("served")
