"""The builders that are compared, each with a store of its own and the same registry as mirror of Docker Hub."""
import os, pathlib, shutil, subprocess

import lab

PATH = "/usr/sbin:/usr/bin:/sbin:/bin"


def reason(error):
    """The last thing that a command that failed said."""
    lines = [line for line in (error.stderr or b"").decode(errors="replace").splitlines() if line.strip()]
    return lines[-1].strip() if lines else str(error)


class Side:
    """A builder: a client that is started for each command, and what runs beside it all the time (`daemons`)."""

    daemons = ()

    def __init__(self):
        self.client = None

    def run(self, *argv):
        self.client = subprocess.Popen(argv, env=self.env, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        try:
            _, said = self.client.communicate()
        except BaseException:
            self.client.kill()
            self.client.wait()
            raise
        code, self.client = self.client.returncode, None
        if code:
            raise subprocess.CalledProcessError(code, argv, stderr=said)

    def pids(self):
        client = self.client
        return [*self.daemons, *([client.pid] if client else [])]

    def stop(self):
        pass


class Kiln(Side):
    name, programs = "kiln", {"kiln"}

    def __init__(self, folder, mirror, program):
        super().__init__()
        self.root = os.path.join(folder, "kiln")
        os.makedirs(self.root)
        self.program = os.path.join(self.root, "kiln")
        shutil.copy(program, self.program)
        config = os.path.join(self.root, "kiln.toml")
        pathlib.Path(config).write_text(f'[registry."docker.io"]\nmirrors = ["{mirror}"]\n')
        self.env = dict(os.environ, KILN_ROOT=os.path.join(self.root, "store"), KILN_CONFIG=config, HOME=self.root)

    def build(self, context, *more):
        self.run(self.program, "build", "--progress=plain", "-t", "bench", *more, str(context))

    def archive(self, context, codec, to):
        self.build(context, "-o", f"type=oci,dest={to},compression={codec}")


class BuildKit(Side):
    """That of Debian stable's docker.io. It can't write archives of OCI's form, so those are left to sid's."""

    name, programs = "BuildKit", {"dockerd", "containerd", "docker", "docker-buildx", "runc", "docker-init"}

    def __init__(self, folder, mirror):
        super().__init__()
        folder = os.path.join(folder, "docker")
        self.server, facts = lab.start_dockerd(folder, [f"http://{mirror}"])
        self.daemons = [self.server.child.pid]
        self.docker = "/usr/bin/docker"
        self.env = dict(os.environ, DOCKER_HOST=facts["host"], DOCKER_BUILDKIT="1", DOCKER_CONFIG=os.path.join(folder, "client"))

    def build(self, context):
        self.run(self.docker, "build", "--network=host", "--progress=plain", "-t", "bench", str(context))

    def stop(self):
        self.server.stop()


class NewBuildKit(BuildKit):
    """That of Debian sid's docker.io, which writes archives."""

    name = "BuildKit (sid)"

    def __init__(self, folder, mirror):
        Side.__init__(self)
        self.server, facts = lab.start_newest(os.path.join(folder, "docker"), [f"http://{mirror}"])
        self.daemons = [self.server.child.pid]
        self.docker, self.env = facts["docker"], dict(os.environ)

    def archive(self, context, codec, to):
        self.run(self.docker, "buildx", "build", "--network=host", "--progress=plain", "--provenance=false",
                 "-o", f"type=oci,dest={to},compression={codec},force-compression=true", str(context))


class Buildah(Side):
    name, programs = "buildah", {"buildah", "podman", "runc", "crun", "conmon", "fuse-overlayfs", "buildah-chroot"}
    more = ()

    def __init__(self, folder, mirror):
        super().__init__()
        home = os.path.join(folder, self.name)
        os.makedirs(os.path.join(home, "tmp"))
        self.home, config = home, os.path.join(home, "registries.conf")
        pathlib.Path(config).write_text(
            'unqualified-search-registries = ["docker.io"]\n[[registry]]\nlocation = "docker.io"\n'
            f'[[registry.mirror]]\nlocation = "{mirror}"\ninsecure = true\n')
        self.argv = [self.name, "--root", os.path.join(home, "root"), "--runroot", os.path.join(home, "run"),
                     "--storage-driver", "overlay", *self.more]
        # crun, its first choice, wants a machine with one hierarchy of control groups.
        engine = os.path.join(home, "containers.conf")
        pathlib.Path(engine).write_text('[engine]\nruntime = "runc"\n' if shutil.which("runc", path=PATH) else "")
        # What it learnt of blobs lies below its home; what it unpacks and packs goes through TMPDIR.
        self.env = dict(os.environ, HOME=home, XDG_DATA_HOME=home, TMPDIR=os.path.join(home, "tmp"), CONTAINERS_REGISTRIES_CONF=config,
                        CONTAINERS_CONF=engine, PATH=f"{os.environ['PATH']}:{PATH}")

    def build(self, context):
        self.run(*self.argv, "build", "--layers", "--network=host", "-t", "bench", str(context))

    def archive(self, context, codec, to):
        self.build(context)
        self.run(*self.argv, "push", "--compression-format", codec, "bench", f"oci-archive:{to}")

    def stop(self):
        subprocess.run([*self.argv, "rmi", "--all", "--force"], env=self.env, check=False, capture_output=True)
        lab.unmount_below(self.home)


class Podman(Buildah):
    name, more = "podman", ("--cgroup-manager", "cgroupfs", "--events-backend", "file")


PEERS = {"buildkit": BuildKit, "buildah": Buildah, "podman": Podman}
