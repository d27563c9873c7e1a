#!/usr/bin/env python3
"""Times what one RUN step costs besides its command: start, mount, run `true`, commit. Beside it what `runc run` costs for
the same command in the same root file system.

usage: step.py KILN [--rounds N] [--require MS]

kiln builds a Dockerfile of 10 and one of 60 steps `RUN true`, without its cache; the difference divided by 50 is one step. It
does so as root (mode A) and as the user kiln-subids (mode B); runc runs the command 20 times. All take turns, and every other
round goes the other way round. The machine must be quiet: the least of the rounds says what the work costs, the median what
else went on.
"""
import argparse, json, os, pathlib, pwd, shutil, statistics, subprocess, sys, tempfile, time

sys.dont_write_bytecode = True
import gauge, lab

FEW, MANY, RUNS = 10, 60, 20


def timed(argv, **more):
    start = time.monotonic()
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, **more)
    took = time.monotonic() - start
    if done.returncode:
        sys.exit(f"{argv}: {done.returncode}\n{done.stderr.decode(errors='replace')}")
    return took


class Kiln:
    """kiln as root, or as somebody else; it is asked which mode it took."""

    def __init__(self, folder, program, mirror, user=None):
        self.home = pathlib.Path(folder, user or "root")
        self.home.mkdir()
        self.wrap, self.program = [], str(self.home / "kiln")
        shutil.copy(program, self.program)
        (self.home / "kiln.toml").write_text(f'[registry."docker.io"]\nmirrors = ["{mirror}"]\n')
        for steps in (1, FEW, MANY):
            context = self.home / str(steps)
            context.mkdir()
            (context / "Dockerfile").write_text("FROM busybox\n" + "RUN true\n" * steps)
        self.env = {"PATH": os.environ["PATH"], "HOME": str(self.home), "KILN_ROOT": str(self.home / "store"),
                    "KILN_CONFIG": str(self.home / "kiln.toml")}
        if user:
            who = pwd.getpwnam(user)
            self.wrap = ["setpriv", f"--reuid={who.pw_uid}", f"--regid={who.pw_gid}", "--clear-groups", "--"]
            subprocess.run(["chown", "-R", f"{who.pw_uid}:{who.pw_gid}", str(self.home)], check=True)
        self.build(1, "--metadata-file", str(self.home / "metadata"))
        self.name = "kiln, " + json.loads((self.home / "metadata").read_text()).get("kiln.sandbox", "root")

    def build(self, steps, *args):
        return timed([*self.wrap, self.program, "build", "--no-cache", "--progress=quiet", *args, str(self.home / str(steps))],
                     env=self.env)

    def step(self):
        few, many = self.build(FEW), self.build(MANY)
        return (many - few) / (MANY - FEW)


class Runc:
    name = "runc run"

    def __init__(self, folder):
        self.bundle = pathlib.Path(folder, "bundle")
        (self.bundle / "rootfs").mkdir(parents=True)
        layout, _ = lab.base("busybox")
        blob = lambda d: os.path.join(layout, "blobs", d["digest"].replace(":", "/"))
        manifest = json.load(open(blob(json.load(open(os.path.join(layout, "index.json")))["manifests"][0])))
        subprocess.run(["tar", "-C", str(self.bundle / "rootfs"), "-xpzf", blob(manifest["layers"][0])], check=True)
        subprocess.run(["runc", "spec"], cwd=self.bundle, check=True)
        spec = json.loads((self.bundle / "config.json").read_text())
        spec["process"] |= {"terminal": False, "args": ["/bin/sh", "-c", "true"]}
        spec["linux"]["namespaces"] = [n for n in spec["linux"]["namespaces"] if n["type"] != "network"]
        (self.bundle / "config.json").write_text(json.dumps(spec))
        self.step()

    def step(self):
        argv = ["runc", "--root", str(self.bundle / "state"), "run", "--bundle", str(self.bundle)]
        return sum(timed([*argv, f"kiln-step-{number}"]) for number in range(RUNS)) / RUNS


def sides(folder, program, mirror):
    yield Kiln(folder, program, mirror)
    try:
        pwd.getpwnam("kiln-subids")
    except KeyError:
        print("there is no user kiln-subids (setup.sh test makes it): mode B is left out", file=sys.stderr)
    else:
        yield Kiln(folder, program, mirror, "kiln-subids")
    if shutil.which("runc", path=os.environ["PATH"] + ":/usr/sbin:/sbin"):
        yield Runc(folder)
    else:
        print("there is no runc: nothing is compared", file=sys.stderr)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kiln")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--require", type=float, help="fail when kiln's least is above this, in milliseconds")
    o = parser.parse_args()
    os.environ["PATH"] += ":/usr/sbin:/sbin"
    with gauge.fresh_disk() as folder:
        # The ordinary user has to get there, also through the folder that the disk is mounted in.
        for way in (folder, os.path.dirname(folder)):
            if way.startswith(tempfile.gettempdir() + os.sep):
                os.chmod(way, 0o755)
        registry, facts = lab.start_registry(os.path.join(folder, "registry"), ["busybox"])
        try:
            all = list(sides(folder, os.path.abspath(o.kiln), facts["host"]))
            took = [[] for _ in all]
            for number in range(o.rounds):
                for which in range(len(all)) if number % 2 == 0 else reversed(range(len(all))):
                    os.sync()
                    took[which].append(all[which].step() * 1000)
        finally:
            registry.stop()
    print(f"{'one step':20} {'least':>10} {'median':>10}    of {o.rounds} rounds; load {os.getloadavg()[0]:.1f}")
    for side, figures in zip(all, took):
        print(f"{side.name:20} {min(figures):7.2f} ms {statistics.median(figures):7.2f} ms")
    slow = [side.name for side, figures in zip(all, took) if o.require and side.name != Runc.name and min(figures) > o.require]
    if slow:
        sys.exit(f"above {o.require} ms: " + "; ".join(slow))


if __name__ == "__main__":
    main()
