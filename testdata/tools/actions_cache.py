"""The cache service of GitHub Actions as far as caches of images need it, on loopback: version 1, version 2 (Twirp), and the part of
Azure's blob storage that version 2 leads to. There is no such service to be had outside of GitHub; BuildKit's client is content with
this one. `actions_cache.py serve [PORT]` says in one line of JSON how it is reached, and runs until it is ended; without a port, until
its standard input ends.

What is like the real one: entries can't be changed and are found by the beginning of their keys, the youngest first, once they are
committed; a token names the branches that it may read and the one that it may write; addresses are signed and good for one entry.
What is not: it forgets nothing, and it answers 429 when a test asks for it (`POST /refuse?times=2&after=1`)."""

import base64
import hashlib
import hmac
import http.server
import json
import os
import re
import secrets
import sys
import threading
import urllib.parse

KEY = secrets.token_bytes(16)
LOCK = threading.Lock()
ENTRIES = []  # the oldest first: dicts of key, version, scope, parts, data, done
REFUSALS = {"times": 0, "after": None}
LIFETIME = 4102444800


def encoded(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def sign(text):
    return encoded(hmac.new(KEY, text.encode(), hashlib.sha256).digest())


def token(scopes):
    claims = {"nbf": 0, "exp": LIFETIME, "ac": json.dumps([{"Scope": s, "Permission": p} for s, p in scopes])}
    text = encoded(b'{"alg":"HS256","typ":"JWT"}') + "." + encoded(json.dumps(claims).encode())
    return text + "." + sign(text)


class Refused(Exception):
    def __init__(self, status, document=b"", headers=()):
        self.status, self.headers = status, headers
        self.document = document if isinstance(document, bytes) else json.dumps(document).encode()


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1

    def log_message(self, *_):
        pass

    def answer(self, status, document=b"", headers=()):
        body = document if isinstance(document, bytes) else json.dumps(document).encode()
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        if status != 204:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD" and status != 204:
            self.wfile.write(body)

    def whole_body(self):
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def handle_any(self):
        self.body = self.whole_body()
        url = urllib.parse.urlsplit(self.path)
        self.query = dict(urllib.parse.parse_qsl(url.query, keep_blank_values=True))
        try:
            with LOCK:
                found = self.route(url.path)
            self.answer(*found)
        except Refused as refused:
            self.answer(refused.status, refused.document, refused.headers)

    do_GET = do_HEAD = do_PUT = do_POST = do_PATCH = handle_any

    def route(self, path):
        if path == "/refuse":
            REFUSALS.update(times=int(self.query["times"]), after=self.query.get("after"))
            return 204, b""
        if path.startswith("/blob/"):
            return self.blob(int(path.split("/")[2]))
        if REFUSALS["times"] > 0:
            REFUSALS["times"] -= 1
            after = [("Retry-After", REFUSALS["after"])] if REFUSALS["after"] else []
            raise Refused(429, {"message": "Request was blocked due to exceeding usage of resource 'Count'"}, after)
        scopes = self.scopes()
        prefix = "/twirp/github.actions.results.api.v1.CacheService/"
        if path.startswith(prefix) and self.command == "POST":
            if self.headers.get("Content-Type") != "application/json":
                raise Refused(415, {"code": "malformed", "msg": "no JSON"})
            return 200, getattr(self, "v2_" + re.sub(r"(?<!^)(?=[A-Z])", "_", path[len(prefix):]).lower())(json.loads(self.body), scopes)
        if path.startswith("/_apis/artifactcache/"):
            if "api-version=6.0-preview.1" not in self.headers.get("Accept", ""):
                raise Refused(400, {"message": "no version of the API"})
            return self.v1(path[len("/_apis/artifactcache/"):], scopes)
        raise Refused(404, {"code": "bad_route", "msg": path})

    def scopes(self):
        kind, _, text = self.headers.get("Authorization", "").partition(" ")
        head, _, signature = text.rpartition(".")
        if kind != "Bearer" or not hmac.compare_digest(signature, sign(head)):
            raise Refused(401, {"code": "unauthenticated", "msg": "the token is not valid"})
        claims = head.split(".")[1]
        claims = json.loads(base64.urlsafe_b64decode(claims + "=" * (-len(claims) % 4)))
        return [(scope["Scope"], scope["Permission"]) for scope in json.loads(claims["ac"])]

    def find(self, keys, version, scopes):
        for scope, permission in scopes:
            for key in keys:
                for entry in reversed(ENTRIES):
                    fits = entry["key"].startswith(key) and entry["version"] == version and entry["scope"] == scope
                    if fits and entry["done"] and permission & 1:
                        return entry
        return None

    def reserve(self, ask, scopes):
        writable = [scope for scope, permission in scopes if permission & 2]
        if not writable:
            raise Refused(403, {"code": "permission_denied", "msg": "the token may not write"})
        same = [e for e in ENTRIES if (e["key"], e["version"], e["scope"]) == (ask["key"], ask["version"], writable[0])]
        if same:
            return None
        entry = dict(key=ask["key"], version=ask["version"], scope=writable[0], parts={}, data=b"", done=False)
        ENTRIES.append(entry)
        return entry

    def place(self, entry, rights):
        number = ENTRIES.index(entry)
        host = self.headers["Host"]
        return f"http://{host}/blob/{number}?sp={rights}&sig={sign(f'{number} {rights}')}"

    # --- version 2

    def v2_create_cache_entry(self, ask, scopes):
        entry = self.reserve(ask, scopes)
        if entry is None:
            raise Refused(409, {"code": "already_exists", "msg": "cache entry with the same key, version, and scope already exists"})
        return {"ok": True, "signed_upload_url": self.place(entry, "w"), "message": ""}

    def v2_finalize_cache_entry_upload(self, ask, scopes):
        for entry in ENTRIES:
            if (entry["key"], entry["version"], entry["done"]) == (ask["key"], ask["version"], False):
                if int(ask["size_bytes"]) != len(entry["data"]):
                    raise Refused(400, {"code": "invalid_argument", "msg": "the size is another one"})
                entry["done"] = True
                return {"ok": True, "entry_id": str(ENTRIES.index(entry)), "message": ""}
        raise Refused(404, {"code": "not_found", "msg": "there is no such upload"})

    def v2_get_cache_entry_download_u_r_l(self, ask, scopes):
        entry = self.find([ask["key"]] + ask.get("restore_keys", []), ask["version"], scopes)
        if entry is None:
            return {"ok": False, "signed_download_url": "", "matched_key": ""}
        return {"ok": True, "signed_download_url": self.place(entry, "r"), "matched_key": entry["key"]}

    # --- Azure's blob storage

    def blob(self, number):
        rights = "w" if self.command == "PUT" else "r"
        if self.query.get("sp") != rights or self.query.get("sig") != sign(f"{number} {rights}"):
            raise Refused(403, b"<?xml version='1.0'?><Error><Code>AuthenticationFailed</Code></Error>")
        if self.headers.get("Authorization"):
            raise Refused(400, b"a token has no business here")
        entry = ENTRIES[number]
        if rights == "r":
            return self.content(entry["data"])
        if entry["done"]:
            raise Refused(409, b"<Error><Code>BlobImmutable</Code></Error>")
        kind = self.query.get("comp")
        if kind == "block":
            entry["parts"][self.query["blockid"]] = self.body
        elif kind == "blocklist":
            named = re.findall(r"<(?:Latest|Uncommitted)>([^<]+)<", self.body.decode())
            if any(block not in entry["parts"] for block in named):
                raise Refused(400, b"<Error><Code>InvalidBlockList</Code></Error>")
            entry["data"] = b"".join(entry["parts"][block] for block in named)
        elif kind is None and self.headers.get("x-ms-blob-type") == "BlockBlob":
            entry["data"] = self.body
        else:
            raise Refused(400, b"<Error><Code>MissingRequiredHeader</Code></Error>")
        return 201, b"", [("x-ms-request-id", "1"), ("ETag", '"1"'), ("x-ms-request-server-encrypted", "true")]

    def content(self, data):
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("x-ms-range") or self.headers.get("Range") or "")
        start = int(wanted[1]) if wanted else 0
        if wanted is None or not data:
            return 200, data, [("ETag", '"1"'), ("Accept-Ranges", "bytes")]
        if start >= len(data):
            raise Refused(416, b"")
        end = min(int(wanted[2]) + 1 if wanted[2] else len(data), len(data))
        return 206, data[start:end], [("Content-Range", f"bytes {start}-{end - 1}/{len(data)}"), ("ETag", '"1"')]

    # --- version 1

    def v1(self, path, scopes):
        if (self.command, path) == ("GET", "cache"):
            entry = self.find(self.query["keys"].split(","), self.query["version"], scopes)
            if entry is None:
                return 204, b""
            return 200, {"cacheKey": entry["key"], "scope": entry["scope"], "archiveLocation": self.place(entry, "r")}
        if (self.command, path) == ("POST", "caches"):
            entry = self.reserve(json.loads(self.body), scopes)
            if entry is None:
                kind = {"typeKey": "ArtifactCacheItemAlreadyExistsException", "typeName": "x, x", "errorCode": 0}
                raise Refused(409, b"\xef\xbb\xbf" + json.dumps({"message": "Cache already exists.", **kind}).encode())
            return 201, {"cacheId": ENTRIES.index(entry) + 1}
        entry = ENTRIES[int(path.split("/")[1]) - 1]
        if entry["done"]:
            raise Refused(400, {"message": "the entry is committed"})
        if self.command == "PATCH":
            start, end = map(int, re.fullmatch(r"bytes (\d+)-(\d+)/\*", self.headers["Content-Range"]).groups())
            if end - start + 1 != len(self.body) and end > 0:
                raise Refused(400, {"message": "the range is another one"})
            entry["parts"][start] = self.body
            return 204, b""
        entry["data"] = b"".join(data for _, data in sorted(entry["parts"].items()))
        if json.loads(self.body)["size"] != len(entry["data"]):
            raise Refused(400, {"message": "the size is another one"})
        entry["done"] = True
        return 204, b""


def serve(port=None):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", int(port or 0)), Handler)
    server.daemon_threads = True
    branch = token([("refs/heads/feature", 3), ("refs/heads/main", 1)])
    said = {"url": f"http://127.0.0.1:{server.server_port}/", "branch": branch, "main": token([("refs/heads/main", 3)]),
            "reader": token([("refs/heads/main", 1)])}
    print(json.dumps(said), flush=True)
    if not port:
        threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0)), daemon=True).start()
    server.serve_forever()


if __name__ == "__main__":
    {"serve": serve}[sys.argv[1]](*sys.argv[2:])
