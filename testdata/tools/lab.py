#!/usr/bin/env python3
"""The servers and base images that kiln's tests, demo and benchmark run against: all real, all on loopback.

usage: lab.py bases [NAME]...                  make the base images (OCI layouts) in the cache folder; print where
       lab.py registry DIR [--seed NAME]... [--auth USER:PASSWORD [--token]] [--tls]
       lab.py dockerd DIR --mirror URL [--mirror URL]...
       lab.py newest DIR --mirror URL          Debian sid's dockerd, for a BuildKit that is newer than that of Debian stable
              --storage-driver                 which keeps layers as older ones do, and not in containerd's image store
       lab.py podman DIR                       Debian's podman as a service
       lab.py files DIR [--auth HEADER]        a file server for ADD of URLs
       lab.py git DIR                          git's own server for the repositories below DIR
       lab.py git-http DIR [--auth HEADER]     the same by git's http backend
       lab.py git-ssh DIR --key PUBLIC_KEY     the same by OpenSSH's server, for whoever has the key

Each server prints one line of JSON when it is ready and serves until its standard input ends. So it cannot outlive
the test, script or person that started it, whatever kills that one. A registry and a dockerd remove their DIR then.

The cache folder is $KILN_TEST_CACHE, else $XDG_CACHE_HOME/kiln-test, else ~/.cache/kiln-test. Removing it is safe.
"""
import argparse, base64, fcntl, functools, gzip, hashlib, http.server, io, json, os, random, shutil, signal, socket, stat, subprocess, sys
import tarfile, tempfile, threading, time, urllib.parse, urllib.request

# Every file of a base image carries this time, so that the same packages give the same bytes.
EPOCH = 1_700_000_000
CREATED = "2023-11-14T22:13:20Z"
PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# Changing how a base is made must change this, or an old cache would be taken for a new one.
RECIPE = "3"

PASSWD = """root:x:0:0:root:/root:/bin/sh
daemon:x:1:1:daemon:/usr/sbin:/bin/false
bin:x:2:2:bin:/bin:/bin/false
www-data:x:33:33:www-data:/var/www:/bin/false
app:x:1000:1001:app:/home/app:/bin/sh
nobody:x:65534:65534:nobody:/home:/bin/false
"""
GROUP = """root:x:0:
daemon:x:1:
bin:x:2:
audio:x:29:app
www-data:x:33:
staff:x:50:app,www-data
users:x:100:
appgroup:x:1001:
nogroup:x:65534:
"""


def cache_dir():
    home = os.environ.get("KILN_TEST_CACHE")
    if not home:
        home = os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "kiln-test")
    os.makedirs(home, exist_ok=True)
    return home


def say(**facts):
    print(json.dumps(facts), flush=True)


# --- base images ---------------------------------------------------------------------------------------------------


def busybox_tar(out, program=None):
    """One static program and a hard link for each applet, as the image of that name on Docker Hub is laid out."""
    native = next((p for p in ("/bin/busybox", "/usr/bin/busybox") if os.path.exists(p)), None)
    if native is None:
        sys.exit("lab.py: busybox-static is not installed")
    program = program or native
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:

        def entry(name, kind, mode, uid=0, gid=0, data=b"", link=""):
            info = tarfile.TarInfo(name)
            info.type, info.mode, info.uid, info.gid, info.mtime, info.linkname = kind, mode, uid, gid, EPOCH, link
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))

        # The folders and files that a sandbox mounts over exist in the image, as they do in any real one.
        folders = {"bin": 0o755, "dev": 0o755, "etc": 0o755, "home": 0o755, "lib": 0o755, "proc": 0o755, "root": 0o700,
                   "run": 0o755, "sys": 0o755, "tmp": 0o1777, "usr": 0o755, "usr/bin": 0o755, "usr/sbin": 0o755,
                   "usr/local": 0o755, "usr/local/bin": 0o755, "var": 0o755, "var/tmp": 0o1777, "var/www": 0o755}
        for name, mode in folders.items():
            entry(name, tarfile.DIRTYPE, mode)
        entry("home/app", tarfile.DIRTYPE, 0o750, 1000, 1001)
        entry("var/run", tarfile.SYMTYPE, 0o777, link="../run")
        for name, text in {"passwd": PASSWD, "group": GROUP, "hosts": "", "resolv.conf": "", "hostname": ""}.items():
            entry("etc/" + name, tarfile.REGTYPE, 0o644, data=text.encode())
        entry("bin/busybox", tarfile.REGTYPE, 0o755, data=open(program, "rb").read())
        for applet in sorted(set(subprocess.check_output([native, "--list"], text=True).split())):
            if applet != "busybox":
                entry("bin/" + applet, tarfile.LNKTYPE, 0o755, link="bin/busybox")


def busybox_arm64_tar(out):
    """The same with Debian's program for another processor; the machine's own package system learns nothing of that."""
    with tempfile.TemporaryDirectory(dir=cache_dir()) as apt:
        mirror = os.environ.get("KILN_TEST_DEBIAN_MIRROR", "http://deb.debian.org/debian")
        for name in ("state/lists/partial", "cache/archives/partial"):
            os.makedirs(os.path.join(apt, name))
        with open(os.path.join(apt, "sources"), "w") as f:
            f.write(f"deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] {mirror} bookworm main\n")
        open(os.path.join(apt, "status"), "w").close()
        options = {"APT::Architecture": "arm64", "APT::Architectures": "arm64", "APT::Sandbox::User": "root",
                   "Dir::State": f"{apt}/state", "Dir::State::status": f"{apt}/status", "Dir::Cache": f"{apt}/cache",
                   "Dir::Etc::sourcelist": f"{apt}/sources", "Dir::Etc::sourceparts": "-"}
        get = ["apt-get", "-qq"] + [word for key, value in options.items() for word in ("-o", f"{key}={value}")]
        for command in (get + ["update"], get + ["download", "busybox-static"], ["sh", "-c", "dpkg-deb -x *.deb root"]):
            done = subprocess.run(command, cwd=apt, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            if done.returncode:
                sys.exit(f"lab.py: busybox-static for arm64 can't be had:\n{done.stdout}")
        busybox_tar(out, os.path.join(apt, "root/bin/busybox"))


def debian_tar(out, packages=()):
    """What `debootstrap --variant=minbase bookworm` unpacks, with more packages, without what only that run explains."""
    root = tempfile.mkdtemp(prefix="debian-", dir=cache_dir())
    try:
        mirror = os.environ.get("KILN_TEST_DEBIAN_MIRROR", "http://deb.debian.org/debian")
        log = os.path.join(cache_dir(), "debootstrap.log")
        with open(log, "wb") as to:
            more = [f"--include={','.join(packages)}"] if packages else []
            code = subprocess.run(["debootstrap", "--variant=minbase", *more, "bookworm", root, mirror], stdout=to, stderr=to).returncode
        if code:
            sys.exit(f"lab.py: debootstrap failed, see {log}:\n" + "".join(open(log).readlines()[-5:]))
        for name in ("etc/resolv.conf", "etc/hostname", "etc/hosts", "etc/machine-id"):
            open(os.path.join(root, name), "w").close()
        for name in ("var/cache/apt", "var/lib/apt/lists", "var/log", "dev", "var/cache/ldconfig", "tmp"):
            for found in os.scandir(os.path.join(root, name)):
                shutil.rmtree(found.path) if found.is_dir(follow_symlinks=False) else os.unlink(found.path)
        for name in ("var/cache/apt/archives/partial", "var/lib/apt/lists/partial", "var/log/apt"):
            os.makedirs(os.path.join(root, name))

        def even(info):
            info.mtime = EPOCH
            info.uname = info.gname = ""
            return info

        with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
            for name in sorted(os.listdir(root)):
                tar.add(os.path.join(root, name), name, filter=even)  # descends in sorted order
    finally:
        shutil.rmtree(root, ignore_errors=True)


BASES = {"busybox": (busybox_tar, "latest", ["sh"], "amd64"),
         "busybox-arm64": (busybox_arm64_tar, "latest", ["sh"], "arm64"),
         "debian": (debian_tar, "bookworm", ["bash"], "amd64"),
         # A compiler, and what sets capabilities and access control lists.
         "buildpack-deps": (functools.partial(debian_tar, packages=("gcc", "libc6-dev", "libcap2-bin", "acl", "attr")), "bookworm", ["bash"], "amd64"),
         # For several platforms: made of others.
         "multiarch": (["busybox", "busybox-arm64"], "latest", None, None)}


def base(name):
    """The OCI layout of a base image, made when the cache doesn't hold it. Two processes that ask at once wait for each other."""
    fill, tag, command, architecture = BASES[name]
    parts = [base(part)[0] for part in fill] if isinstance(fill, list) else []
    final = os.path.join(cache_dir(), f"{name}-{RECIPE}")
    with open(final + ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not os.path.exists(os.path.join(final, "index.json")):
            shutil.rmtree(final, ignore_errors=True)
            building = final + ".new"
            shutil.rmtree(building, ignore_errors=True)
            blobs = os.path.join(building, "blobs", "sha256")
            os.makedirs(blobs)

            def put(data):
                digest = hashlib.sha256(data).hexdigest()
                with open(os.path.join(blobs, digest), "wb") as f:
                    f.write(data)
                return {"digest": "sha256:" + digest, "size": len(data)}

            def image():
                with tempfile.TemporaryFile(dir=building) as plain:
                    fill(plain)
                    plain.seek(0)
                    data = plain.read()
                config = {"architecture": architecture, "os": "linux", "created": CREATED, "config": {"Env": [PATH], "Cmd": command},
                          "rootfs": {"type": "layers", "diff_ids": ["sha256:" + hashlib.sha256(data).hexdigest()]},
                          "history": [{"created": CREATED, "created_by": f"the {name} base of kiln's tests"}]}
                layer = put(gzip.compress(data, 6, mtime=0)) | {"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip"}
                config = put(json.dumps(config).encode()) | {"mediaType": "application/vnd.oci.image.config.v1+json"}
                kind = "application/vnd.oci.image.manifest.v1+json"
                document = {"schemaVersion": 2, "mediaType": kind, "config": config, "layers": [layer]}
                return put(json.dumps(document).encode()) | {"mediaType": kind}

            def index():
                manifests = []
                for part, layout in zip(fill, parts):
                    shutil.copytree(os.path.join(layout, "blobs"), os.path.join(building, "blobs"), dirs_exist_ok=True)
                    with open(os.path.join(layout, "index.json")) as f:
                        manifest = json.load(f)["manifests"][0]
                    del manifest["annotations"]
                    manifests.append(manifest | {"platform": {"os": "linux", "architecture": BASES[part][3]}})
                kind = "application/vnd.oci.image.index.v1+json"
                document = {"schemaVersion": 2, "mediaType": kind, "manifests": manifests}
                return put(json.dumps(document).encode()) | {"mediaType": kind}

            manifest = index() if parts else image()
            manifest |= {"annotations": {"org.opencontainers.image.ref.name": tag}}
            for file, value in {"oci-layout": {"imageLayoutVersion": "1.0.0"}, "index.json": {"schemaVersion": 2, "manifests": [manifest]}}.items():
                with open(os.path.join(building, file), "w") as f:
                    json.dump(value, f)
            os.rename(building, final)
    return final, tag


# --- servers -------------------------------------------------------------------------------------------------------


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def wait_for(what, ready, child, log, seconds=60):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if child.poll() is not None:
            break
        if ready():
            return
        time.sleep(0.02)
    child.kill()
    child.wait()
    sys.exit(f"lab.py: {what} did not start, its log {log} ends:\n" + "".join(open(log, errors="replace").readlines()[-15:]))


def connects(port):
    with socket.socket() as s:
        return s.connect_ex(("127.0.0.1", port)) == 0


def tls_files(folder):
    """A private authority and a certificate for loopback that it signed."""
    def openssl(*args):
        subprocess.run(["openssl", *args], cwd=folder, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    openssl("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=kiln test authority",
            "-keyout", "ca.key", "-out", "ca.crt")
    openssl("req", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost", "-keyout", "server.key", "-out", "server.csr")
    with open(os.path.join(folder, "san"), "w") as f:
        f.write("subjectAltName=DNS:localhost,IP:127.0.0.1\nbasicConstraints=CA:FALSE\nextendedKeyUsage=serverAuth\n")
    openssl("x509", "-req", "-in", "server.csr", "-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2",
            "-extfile", "san", "-out", "server.crt")


def unmount_below(folder):
    """dockerd leaves its network namespace mounted, and more when it is killed."""
    with open("/proc/self/mounts") as f:
        points = [line.split()[1] for line in f]
    for point in reversed([p for p in points if p.startswith(os.path.realpath(folder) + "/")]):
        subprocess.run(["umount", "--lazy", point], stderr=subprocess.DEVNULL)


class Server:
    """A child in a process group of its own; `stop` ends the group and removes what `remove` names."""

    def __init__(self, child, remove=()):
        self.child, self.remove = child, remove

    def stop(self, seconds=15):
        if self.child.poll() is None:
            self.child.terminate()
            try:
                self.child.wait(seconds)
            except subprocess.TimeoutExpired:
                pass
        try:
            os.killpg(self.child.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.child.wait()
        for path in self.remove:
            unmount_below(path)
            shutil.rmtree(path, ignore_errors=True)


def start(argv, log, **more):
    with open(log, "ab") as to:
        return subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=to, stderr=to, start_new_session=True, **more)


class Tokens(http.server.BaseHTTPRequestHandler):
    """A token service (distribution, spec/auth): signed tokens for one user, whose rights are all that is asked for."""
    folder = user = None

    def do_GET(self):
        query = urllib.parse.parse_qs(urllib.parse.urlsplit(self.path).query)
        given = self.headers.get("Authorization")
        if given and given != "Basic " + base64.b64encode(self.user.encode()).decode():
            self.send_error(401)
            return
        access = []
        for scope in " ".join(query.get("scope", [])).split():
            kind, name, actions = scope.split(":")
            access.append({"type": kind, "name": name, "actions": actions.split(",") if given else []})
        now = int(time.time())
        claims = {"iss": "kiln tests", "sub": "", "aud": "registry", "iat": now - 60, "nbf": now - 60, "exp": now + 60, "jti": "1", "access": access}
        with open(os.path.join(self.folder, "token.crt")) as f:
            certificate = "".join(line.strip() for line in f if not line.startswith("--"))
        parts = [json.dumps(part).encode() for part in ({"typ": "JWT", "alg": "RS256", "x5c": [certificate]}, claims)]
        text = b".".join(base64.urlsafe_b64encode(part).rstrip(b"=") for part in parts)
        sign = ["openssl", "dgst", "-sha256", "-sign", os.path.join(self.folder, "token.key")]
        signature = subprocess.run(sign, input=text, stdout=subprocess.PIPE, check=True).stdout
        answer = json.dumps({"token": (text + b"." + base64.urlsafe_b64encode(signature).rstrip(b"=")).decode()}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def do_POST(self):
        self.send_error(405)

    def log_message(self, *_):
        pass


def start_tokens(folder, user):
    """What a registry's configuration says of a token service, which ends with this process."""
    make = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=tokens", "-keyout", "token.key", "-out", "token.crt"]
    subprocess.run(make, cwd=folder, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    handler = type("Handler", (Tokens,), {"folder": folder, "user": user})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    realm = f"http://127.0.0.1:{server.server_address[1]}/token"
    return {"token": {"realm": realm, "service": "registry", "issuer": "kiln tests", "rootcertbundle": os.path.join(folder, "token.crt")}}


def start_registry(folder, seeds=(), auth=None, tls=False, token=False):
    """Debian's docker-registry with its storage, its log and its certificates in `folder`."""
    os.makedirs(folder, exist_ok=True)
    port, log = free_port(), os.path.join(folder, "log")
    config = {"version": 0.1, "log": {"level": "info", "accesslog": {"disabled": False}},
              "storage": {"filesystem": {"rootdirectory": os.path.join(folder, "storage")}, "delete": {"enabled": True}},
              "http": {"addr": f"127.0.0.1:{port}", "secret": "of no use to anybody"}}
    if auth and token:
        config["auth"] = start_tokens(folder, auth)
    elif auth:
        user, password = auth.split(":", 1)
        line = subprocess.check_output(["htpasswd", "-nbB", user, password], text=True).strip()
        with open(os.path.join(folder, "htpasswd"), "w") as f:
            f.write(line + "\n")
        config["auth"] = {"htpasswd": {"realm": "kiln tests", "path": os.path.join(folder, "htpasswd")}}
    if tls:
        tls_files(folder)
        config["http"]["tls"] = {"certificate": os.path.join(folder, "server.crt"), "key": os.path.join(folder, "server.key")}
    with open(os.path.join(folder, "config.yml"), "w") as f:
        json.dump(config, f)  # JSON is YAML
    server = Server(start(["docker-registry", "serve", os.path.join(folder, "config.yml")], log), [folder])
    wait_for("docker-registry", lambda: connects(port), server.child, log)
    for name in seeds:
        layout, tag = base(name)
        argv = ["skopeo", "copy", "-q", "--all", "--dest-tls-verify=false"]
        if auth:
            argv += ["--dest-creds", auth]
        subprocess.run(argv + [f"oci:{layout}:{tag}", f"docker://127.0.0.1:{port}/library/{name}:{tag}"], check=True)
    facts = {"host": f"127.0.0.1:{port}", "log": log, "storage": os.path.join(folder, "storage")}
    if tls:
        facts["ca"] = os.path.join(folder, "ca.crt")
    return server, facts


def start_dockerd(folder, mirrors):
    """Debian's dockerd, whose BuildKit is what kiln is compared with: no bridge, no firewall rules, nothing outside `folder`."""
    os.makedirs(folder, exist_ok=True)
    at = functools.partial(os.path.join, folder)
    log, host = at("log"), "unix://" + at("docker.sock")
    with open(at("daemon.json"), "w") as f:
        f.write("{}")
    argv = ["dockerd", "--config-file", at("daemon.json"), "--host", host, "--data-root", at("data"), "--exec-root", at("exec"),
            "--pidfile", at("pid"), "--bridge=none", "--iptables=false", "--ip6tables=false"]
    for mirror in mirrors:
        argv += ["--registry-mirror", mirror]
    server = Server(start(argv, log, env=dict(os.environ, PATH="/usr/sbin:/usr/bin:/sbin:/bin")), [folder])
    docker = dict(os.environ, DOCKER_HOST=host, DOCKER_CONFIG=at("client"))

    def answers():
        return os.path.exists(at("docker.sock")) and subprocess.run(
            ["/usr/bin/docker", "version"], env=docker, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode == 0

    wait_for("dockerd", answers, server.child, log)
    return server, {"host": host, "log": log, "data": at("data")}


def newest_root():
    """The root of Debian sid with its docker.io, made when the cache doesn't hold it: two minutes, 1.5 GB."""
    root = os.path.join(cache_dir(), "sid-1")
    with open(root + ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not os.path.exists(root):
            mirror = os.environ.get("KILN_TEST_DEBIAN_MIRROR", "http://deb.debian.org/debian")
            shutil.rmtree(root + ".new", ignore_errors=True)
            packages = "docker.io,docker-cli,docker-buildx,ca-certificates,git,xz-utils,openssh-client,iptables"
            subprocess.run(["debootstrap", "--variant=minbase", f"--include={packages}", "sid", root + ".new", mirror],
                           check=True, stdout=sys.stderr)
            os.rename(root + ".new", root)
    return root


def start_newest(folder, mirrors, containerd=True):
    """Debian sid's dockerd in a root and a mount namespace of its own. Its client sees the temporary folder and `folder`
    under their own names."""
    os.makedirs(folder, exist_ok=True)
    at = functools.partial(os.path.join, folder)
    root, log, host = newest_root(), at("log"), "unix://" + at("docker.sock")
    settings = {"features": {"containerd-snapshotter": containerd}, "registry-mirrors": list(mirrors)}
    with open(at("daemon.json"), "w") as f:
        json.dump(settings, f)
    seen = {tempfile.gettempdir(), folder}
    # runc needs a root that is a mount point, so this is no chroot.
    script = ["set -e", "mount --make-rprivate /", f"mount --bind {root} {root}"]
    for path in ["/proc", "/sys", "/dev", *sorted(seen)]:
        script += [f"mkdir -p {root}{path}", f"mount --rbind {path} {root}{path}"]
    script += [f"cat /etc/resolv.conf > {root}/etc/resolv.conf", f"mount -t tmpfs none {root}/run", f"cd {root}", "mkdir -p old",
               "pivot_root . old", "cd /", "umount -l /old",
               f"exec env PATH=/usr/sbin:/usr/bin:/sbin:/bin dockerd --config-file {at('daemon.json')} --host {host} --data-root {at('data')}"
               f" --exec-root /run/docker --pidfile {at('pid')} --bridge=none --iptables=false --ip6tables=false"]
    server = Server(start(["unshare", "-m", "sh", "-c", "\n".join(script)], log), [folder])
    with open(at("docker"), "w") as f:
        f.write(f"#!/bin/sh\nexec nsenter -m -t {server.child.pid} -- env PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root "
                f"DOCKER_HOST={host} DOCKER_CONFIG={at('client')} docker \"$@\"\n")
    os.chmod(at("docker"), 0o755)

    def answers():
        return os.path.exists(at("docker.sock")) and subprocess.run(
            [at("docker"), "version"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode == 0

    wait_for("Debian sid's dockerd", answers, server.child, log)
    version = subprocess.check_output([at("docker"), "version", "--format", "{{.Server.Version}}"], text=True).strip()
    return server, {"docker": at("docker"), "host": host, "version": version.split("+")[0], "log": log}


def start_podman(folder):
    """podman's service with a storage of its own."""
    os.makedirs(folder, exist_ok=True)
    at = functools.partial(os.path.join, folder)
    log, socket_path = at("log"), at("podman.sock")
    for program, flags in {"podman": "--cgroup-manager cgroupfs --events-backend file ", "buildah": ""}.items():
        path = at("podman" if program == "podman" else "podman.buildah")
        with open(path, "w") as f:
            f.write(f"#!/bin/sh\nexec {program} --root {at('root')} --runroot {at('run')} --storage-driver overlay {flags}\"$@\"\n")
        os.chmod(path, 0o755)
    # Archives are unpacked in TMPDIR.
    os.makedirs(at("tmp"))
    env = dict(os.environ, TMPDIR=at("tmp"), HOME=folder)
    server = Server(start([at("podman"), "system", "service", "--time=0", "unix://" + socket_path], log, env=env), [folder])
    wait_for("podman", lambda: os.path.exists(socket_path), server.child, log)
    return server, {"host": "unix://" + socket_path, "podman": at("podman"), "log": log}


class Guarded(http.server.SimpleHTTPRequestHandler):
    """Serves files to whoever sends `authorization` in the header of that name."""

    authorization = None

    def log_message(self, *_):
        pass

    def allowed(self):
        scheme, _, credentials = (self.headers.get("Authorization") or "").partition(" ")
        if self.authorization in (None, f"{scheme.capitalize()} {credentials}"):
            return True
        self.send_response(401)
        self.send_header("WWW-Authenticate", 'Basic realm="kiln tests"')
        self.send_header("Content-Length", "0")
        self.end_headers()
        return False

    def do_GET(self):
        if self.allowed():
            super().do_GET()


class GitBackend(Guarded):
    """Hands each request to git's CGI program (git-http-backend(1))."""

    def do_GET(self):
        if not self.allowed():
            return
        path, _, query = self.path.partition("?")
        env = dict(os.environ, GIT_PROJECT_ROOT=self.directory, GIT_HTTP_EXPORT_ALL="1", PATH_INFO=path, QUERY_STRING=query,
                   REQUEST_METHOD=self.command, CONTENT_TYPE=self.headers.get("Content-Type", ""), REMOTE_ADDR="127.0.0.1",
                   GIT_PROTOCOL=self.headers.get("Git-Protocol", ""), HTTP_CONTENT_ENCODING=self.headers.get("Content-Encoding", ""),
                   GIT_CONFIG_COUNT="1", GIT_CONFIG_KEY_0="safe.directory", GIT_CONFIG_VALUE_0="*")
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        done = subprocess.run(["git", "http-backend"], env=env, input=body, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        head, _, body = done.stdout.partition(b"\r\n\r\n")
        headers = dict(line.split(": ", 1) for line in head.decode().split("\r\n") if line)
        self.send_response(int(headers.pop("Status", "200 OK").split()[0]))
        for name, value in (headers | {"Content-Length": str(len(body))}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_GET


def start_http(handler, folder, authorization):
    handler = type(handler.__name__, (handler,), {"authorization": authorization})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(handler, directory=folder))
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server, {"host": f"127.0.0.1:{server.server_address[1]}"}


def start_git(folder):
    """`git daemon`, which serves every repository below `folder`."""
    port = free_port()
    daemon = os.path.join(subprocess.check_output(["git", "--exec-path"], text=True).strip(), "git-daemon")
    with tempfile.NamedTemporaryFile(prefix="git-daemon-") as log:
        argv = [daemon, "--listen=127.0.0.1", f"--port={port}", "--reuseaddr", "--export-all", f"--base-path={folder}", folder]
        env = dict(os.environ, GIT_CONFIG_COUNT="1", GIT_CONFIG_KEY_0="safe.directory", GIT_CONFIG_VALUE_0="*")
        server = Server(start(argv, log.name, env=env), [])
        wait_for("git daemon", lambda: connects(port), server.child, log.name)
    return server, {"host": f"127.0.0.1:{port}"}


def start_git_ssh(folder, key):
    """Debian's sshd, which lets the user that runs it in with `key` and then only gives out the repositories below `folder`."""
    own = tempfile.mkdtemp(prefix="kiln-sshd-")
    at = functools.partial(os.path.join, own)
    subprocess.run(["ssh-keygen", "-q", "-N", "", "-t", "ed25519", "-f", at("host")], check=True)
    with open(at("serve"), "w") as f:
        f.write(f"""#!/bin/sh
export GIT_CONFIG_COUNT=1 GIT_CONFIG_KEY_0=safe.directory GIT_CONFIG_VALUE_0='*'
cd {folder} && eval "set -- $SSH_ORIGINAL_COMMAND" && test "$1" = git-upload-pack && exec git upload-pack "./$2"
""")
    os.chmod(at("serve"), 0o755)
    with open(at("authorized"), "w") as f:
        f.write(f"restrict,command=\"{at('serve')}\" {open(key).read()}")
    port, log = free_port(), at("log")
    os.makedirs("/run/sshd", exist_ok=True)
    # `user@host:path` can't name a port: an address of the loopback that nobody else uses.
    usual = "127." + ".".join(str(random.randint(2, 250)) for _ in range(3))
    settings = [f"ListenAddress 127.0.0.1:{port}", f"ListenAddress {usual}:22", f"HostKey {at('host')}", f"AuthorizedKeysFile {at('authorized')}", "UsePAM no",
                "PasswordAuthentication no", "PermitRootLogin yes", "StrictModes no", "PidFile none"]
    argv = ["/usr/sbin/sshd", "-D", "-e", "-f", "/dev/null"] + [word for setting in settings for word in ("-o", setting)]
    server = Server(start(argv, log), [own])
    wait_for("sshd", lambda: connects(port), server.child, log)
    return server, {"host": f"127.0.0.1:{port}", "usual": usual}


def until_stdin_ends(server):
    for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(name, lambda *_: sys.exit(0))
    try:
        while os.read(0, 4096):
            pass
    finally:
        if isinstance(server, Server):
            server.stop()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    verb = verbs.add_parser("bases")
    verb.add_argument("names", nargs="*", default=[])
    verb = verbs.add_parser("registry")
    verb.add_argument("dir")
    verb.add_argument("--seed", action="append", default=[])
    verb.add_argument("--auth")
    verb.add_argument("--token", action="store_true")
    verb.add_argument("--tls", action="store_true")
    verb = verbs.add_parser("dockerd")
    verb.add_argument("dir")
    verb.add_argument("--mirror", action="append", default=[])
    verb = verbs.add_parser("newest")
    verb.add_argument("dir")
    verb.add_argument("--mirror", action="append", default=[])
    verb.add_argument("--storage-driver", action="store_true")
    verb = verbs.add_parser("podman")
    verb.add_argument("dir")
    verb = verbs.add_parser("files")
    verb.add_argument("dir")
    verb.add_argument("--auth")
    verb = verbs.add_parser("git")
    verb.add_argument("dir")
    verb = verbs.add_parser("git-http")
    verb.add_argument("dir")
    verb.add_argument("--auth")
    verb = verbs.add_parser("git-ssh")
    verb.add_argument("dir")
    verb.add_argument("--key", required=True)
    o = parser.parse_args()
    if o.verb == "bases":
        for name in o.names or sorted(BASES):
            print(name, *base(name))
        return
    if o.verb == "registry":
        server, facts = start_registry(os.path.abspath(o.dir), o.seed, o.auth, o.tls, o.token)
    elif o.verb == "dockerd":
        server, facts = start_dockerd(os.path.abspath(o.dir), o.mirror)
    elif o.verb == "newest":
        server, facts = start_newest(os.path.abspath(o.dir), o.mirror, not o.storage_driver)
    elif o.verb == "podman":
        server, facts = start_podman(os.path.abspath(o.dir))
    elif o.verb == "git":
        server, facts = start_git(os.path.abspath(o.dir))
    elif o.verb == "git-http":
        server, facts = start_http(GitBackend, os.path.abspath(o.dir), o.auth)
    elif o.verb == "git-ssh":
        server, facts = start_git_ssh(os.path.abspath(o.dir), o.key)
    else:
        server, facts = start_http(Guarded, os.path.abspath(o.dir), o.auth)
    say(**facts)
    until_stdin_ends(server)


if __name__ == "__main__":
    main()
