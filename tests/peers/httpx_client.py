"""httpx: a pool of kept connections, streams in both directions, redirects."""

import sys

import httpx


def pieces():
    yield b"a"
    yield b"b" * 70_000


with httpx.Client(base_url=f"http://{sys.argv[1]}", timeout=10) as client:
    for _ in range(20):
        hello = client.get("/hello")
        assert hello.status_code == 200 and hello.http_version == "HTTP/1.1" and hello.text == "Hello, World!"
    assert client.post("/hello", content=b"x" * 100_000).text == "Hello, World!"
    assert client.post("/hello", content=pieces()).text == "Hello, World!"
    digits = client.get("/digits")
    assert digits.content == b"0123456789"
    assert client.get("/digits", headers={"If-None-Match": digits.headers["etag"]}).status_code == 304
    part = client.get("/digits", headers={"Range": "bytes=-2"})
    assert (part.status_code, part.content, part.headers["content-range"]) == (206, b"89", "bytes 8-9/10")
    assert client.head("/digits").headers["content-length"] == "10"
    assert client.get("/absent").status_code == 404
    assert client.get("/sub").headers["location"] == "/sub/"
    assert client.get("/sub", follow_redirects=True).text == "sub index"
    with client.stream("GET", "/large") as large:
        assert sum(len(piece) for piece in large.iter_raw()) == int(large.headers["content-length"])
print("served")
