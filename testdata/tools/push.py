#!/usr/bin/env python3
"""Times `kiln push` against `docker push` (Debian's docker.io) and `buildah push`: one image of eight layers of 100 MB, gzip,
to a registry on loopback that is empty each time, each side compressing anew each time.

usage: push.py KILN [--rounds N] [--mb MB] [--only SIDE,SIDE] [--require DOCKER BUILDAH]

In a round all sides push the same image, one after the other, every round beginning with another one. Half of the data is
random, half is text. Beside the time that a person waits stands the processor time of the side and of the registry: on a
machine with other work that says more. Ratios are of the shortest times and, paired, the median of the rounds' ratios.
"""
import argparse, os, pathlib, random, shutil, signal, statistics, subprocess, sys, tempfile, time

sys.dont_write_bytecode = True
import lab

LAYERS = 8
QUIET = dict(stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def make_context(folder, megabytes):
    """Files of 10 MB, each a megabyte of noise and one of text in turns."""
    pick = random.Random(5)
    words = [bytes(pick.choices(b"abcdefghijklmnopqrstuvwxyz", k=pick.randint(2, 9))) for _ in range(4000)]
    lines = ["FROM scratch"]
    for layer in range(LAYERS):
        below = folder / f"layer{layer}"
        below.mkdir(parents=True)
        for number in range(max(1, megabytes // LAYERS // 10)):
            with open(below / f"data{number}.bin", "wb") as file:
                for _ in range(5):
                    file.write(pick.randbytes(1 << 20))
                    file.write(b" ".join(pick.choices(words, k=220_000))[: 1 << 20].ljust(1 << 20))
        lines.append(f"COPY layer{layer} /layer{layer}")
    (folder / "Dockerfile").write_text("\n".join(lines) + "\n")


def processor_seconds(pid):
    """Of a process and of the children that it waited for."""
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(int(ticks) for ticks in fields[11:15]) / os.sysconf("SC_CLK_TCK")


def run(argv, env, pid=None):
    """Wall and processor seconds of a command, with those of the daemon `pid` that works for it."""
    before = processor_seconds(pid) if pid else 0
    used, start = os.times(), time.monotonic()
    subprocess.run(argv, env=env, check=True, **QUIET)
    wall, now = time.monotonic() - start, os.times()
    cpu = now.children_user + now.children_system - used.children_user - used.children_system
    return wall, cpu + (processor_seconds(pid) - before if pid else 0)


class Kiln:
    name = "kiln"

    def __init__(self, folder, program, context):
        self.folder, self.program, self.context, self.count = folder, program, context, 0
        self.config = os.path.join(folder, "kiln.toml")

    def env(self, registry="unused:1"):
        pathlib.Path(self.config).write_text(f'[registry."{registry}"]\nplain-http = true\n')
        return dict(os.environ, KILN_ROOT=self.root, KILN_CONFIG=self.config, HOME=self.folder)

    def archive(self, name):
        """The image as a file that the others load."""
        self.root = os.path.join(self.folder, "kiln-first")
        path = os.path.join(self.folder, "image.tar")
        argv = [self.program, "build", "-t", name, "-o", f"type=docker,dest={path}", self.context]
        subprocess.run(argv, env=self.env(), check=True, **QUIET)
        shutil.rmtree(self.root)
        return path

    def push(self, registry):
        # A store that has never packed the image.
        self.count += 1
        self.root = os.path.join(self.folder, f"kiln-{self.count}")
        name = f"{registry}/bench:latest"
        subprocess.run([self.program, "build", "-t", name, self.context], env=self.env(registry), check=True, **QUIET)
        os.sync()
        took = run([self.program, "push", name], self.env(registry))
        shutil.rmtree(self.root)
        return took

    def stop(self):
        pass


class Docker:
    name = "docker"

    def __init__(self, folder, archive, name):
        self.server, facts = lab.start_dockerd(os.path.join(folder, "dockerd"), [])
        self.env = dict(os.environ, DOCKER_HOST=facts["host"], DOCKER_CONFIG=os.path.join(folder, "client"))
        self.image = name
        subprocess.run(["/usr/bin/docker", "load", "-q", "-i", archive], env=self.env, check=True, **QUIET)

    def push(self, registry):
        name = f"{registry}/bench:latest"
        subprocess.run(["/usr/bin/docker", "tag", self.image, name], env=self.env, check=True, **QUIET)
        os.sync()
        return run(["/usr/bin/docker", "push", "-q", name], self.env, self.server.child.pid)

    def stop(self):
        self.server.stop()


class Buildah:
    name = "buildah"

    def __init__(self, folder, archive, name):
        self.home = os.path.join(folder, "containers")
        self.argv = ["buildah", "--root", os.path.join(self.home, "root"), "--runroot", os.path.join(self.home, "run")]
        # What it learnt of blobs in a round lies below this folder, too.
        self.env = dict(os.environ, HOME=self.home, XDG_DATA_HOME=self.home)
        os.mkdir(self.home)
        subprocess.run([*self.argv, "pull", "-q", f"docker-archive:{archive}"], env=self.env, check=True, **QUIET)
        self.image = name

    def push(self, registry):
        os.sync()
        return run([*self.argv, "push", "-q", "--tls-verify=false", self.image, f"docker://{registry}/bench:latest"], self.env)

    def stop(self):
        subprocess.run([*self.argv, "rmi", "--all", "--force"], env=self.env, check=False, **QUIET)
        lab.unmount_below(self.home)


def pushed_bytes(storage):
    return sum(path.stat().st_size for path in pathlib.Path(storage).rglob("data"))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kiln")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--mb", type=int, default=800)
    parser.add_argument("--only", default="kiln,docker,buildah")
    parser.add_argument("--require", type=float, nargs=2, metavar=("DOCKER", "BUILDAH"), help="fail when a ratio is below these")
    o = parser.parse_args()
    # Whoever ends it early leaves no daemon behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    took = {}
    with tempfile.TemporaryDirectory(prefix="kiln-push-", dir=os.environ.get("TMPDIR", "/var/tmp")) as folder:
        context = os.path.join(folder, "context")
        make_context(pathlib.Path(context), o.mb)
        sides, name = [], "localhost/bench:latest"
        try:
            kiln = Kiln(folder, os.path.abspath(o.kiln), context)
            archive = kiln.archive(name)
            makers = {"kiln": lambda: kiln, "docker": lambda: Docker(folder, archive, name), "buildah": lambda: Buildah(folder, archive, name)}
            for side in o.only.split(","):
                sides.append(makers[side]())
            os.unlink(archive)
            for number in range(o.rounds):
                for side in sides[number % len(sides) :] + sides[: number % len(sides)]:
                    registry, facts = lab.start_registry(os.path.join(folder, "registry"))
                    try:
                        wall, cpu = side.push(facts["host"])
                        took.setdefault(side.name, []).append((wall, cpu, processor_seconds(registry.child.pid), pushed_bytes(facts["storage"])))
                    finally:
                        registry.stop()
                    wall, cpu, beside, size = took[side.name][-1]
                    print(f"round {number + 1} {side.name:8} {wall:7.2f} s, processor {cpu:6.2f} s, registry {beside:5.2f} s, "
                          f"{size / 1e6:.1f} MB", flush=True)
        except subprocess.CalledProcessError as error:
            sys.exit(f"{error}\n{error.stderr.decode(errors='replace')}")
        finally:
            for side in sides:
                side.stop()
    failed = []
    for number, side in enumerate(["docker", "buildah"]):
        if side in took and "kiln" in took:
            paired = statistics.median(theirs[0] / ours[0] for theirs, ours in zip(took[side], took["kiln"]))
            shortest = min(t[0] for t in took[side]) / min(t[0] for t in took["kiln"])
            work = min(t[1] for t in took[side]) / min(t[1] for t in took["kiln"])
            print(f"{side}: kiln is {paired:.2f} times as fast (median of paired rounds), {shortest:.2f} by the shortest, "
                  f"{work:.2f} by processor time")
            if o.require and max(paired, shortest) < o.require[number]:
                failed.append(side)
    if failed:
        sys.exit("slower than required against " + ", ".join(failed))


if __name__ == "__main__":
    main()
