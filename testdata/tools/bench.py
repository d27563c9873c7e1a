#!/usr/bin/env python3
"""Times kiln against the BuildKit of Debian's docker.io: the same work, in turns, in one run on one machine.

usage: bench.py KILN [--rounds N] [--require RATIO] [--only WORK]

`cold`: neither has anything of the work but the base image. `again`: nothing changed since. Each figure is the median
of the rounds; in a round the two take turns, and every other round starts with the other one.

All of it lies on a file system made for the run, and nothing is deleted before the end: for minutes after a large tree
was removed, ext4 looks for each new inode among all those that were freed (`recently_deleted` in fs/ext4/ialloc.c), which
makes creating 20,000 files ten times as slow for whoever comes next.
"""
import argparse, contextlib, json, os, pathlib, random, shutil, statistics, subprocess, sys, tempfile, time

sys.dont_write_bytecode = True
import lab


def steps(folder, seed):
    """Fifty commands that do next to nothing: what a step costs."""
    lines = [f"RUN echo {i} > /f{i}" for i in range(50)]
    (folder / "Dockerfile").write_text("\n".join([f"FROM busybox\nENV ROUND={seed}", *lines]) + "\n")


def small_files(folder, seed):
    """Twenty thousand small files in a thousand folders, as a tree of installed packages has."""
    pick = random.Random(seed)
    words = ["".join(pick.choices("abcdefghijklmnopqrstuvwxyz", k=pick.randint(3, 10))) for _ in range(3000)]
    text = " ".join(pick.choices(words, k=40_000))
    for part in range(1000):
        below = folder / "src" / f"group{part // 40}" / f"part{part}"
        below.mkdir(parents=True)
        for number in range(20):
            size, start = pick.randint(200, 6000), pick.randrange(len(text) - 6000)
            (below / f"file{number}.js").write_text(text[start : start + size])
    (folder / "Dockerfile").write_text("FROM busybox\nWORKDIR /app\nCOPY src ./src\nRUN find src -type f | wc -l > /count\n")


WORKS = {"50 RUN steps": steps, "20,000 small files": small_files}


class BuildKit:
    name = "BuildKit"

    def __init__(self, folder, mirror):
        self.server, facts = lab.start_dockerd(os.path.join(folder, "dockerd"), [f"http://{mirror}"])
        self.env = dict(os.environ, DOCKER_HOST=facts["host"], DOCKER_BUILDKIT="1", DOCKER_CONFIG=os.path.join(folder, "client"))

    def docker(self, *args):
        subprocess.run(["/usr/bin/docker", *args], env=self.env, check=True, stdin=subprocess.DEVNULL,
                       stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)

    def build(self, context):
        self.docker("build", "--network=host", "--progress=plain", "-t", "bench", str(context))

    def stop(self):
        self.server.stop()


class Kiln:
    name = "kiln"

    def __init__(self, folder, mirror, program):
        self.program, self.root = program, os.path.join(folder, "store")
        config = os.path.join(folder, "kiln.toml")
        pathlib.Path(config).write_text(f'[registry."docker.io"]\nmirrors = ["{mirror}"]\n')
        self.env = dict(os.environ, KILN_ROOT=self.root, KILN_CONFIG=config, HOME=folder)

    def build(self, context):
        subprocess.run([self.program, "build", "--progress=plain", "-t", "bench", str(context)], env=self.env, check=True,
                       stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)

    def stop(self):
        shutil.rmtree(self.root, ignore_errors=True)


@contextlib.contextmanager
def fresh_disk():
    """A folder on an ext4 of its own; a plain temporary folder where none can be mounted."""
    with tempfile.TemporaryDirectory(prefix="kiln-bench-") as folder:
        image, disk = os.path.join(folder, "disk.img"), os.path.join(folder, "disk")
        os.mkdir(disk)
        with open(image, "wb") as file:
            file.truncate(24 << 30)
        try:
            # No initialisation in the background, which would go on beside the work that is timed.
            options = "lazy_itable_init=0,lazy_journal_init=0,nodiscard"
            subprocess.run(["mkfs.ext4", "-q", "-F", "-E", options, image], check=True, capture_output=True)
            subprocess.run(["mount", "-o", "loop", image, disk], check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError) as error:
            print(f"no file system of its own can be had here ({error}), so figures depend on the past of this one", file=sys.stderr)
            yield folder
            return
        try:
            yield disk
        finally:
            subprocess.run(["umount", "--lazy", disk], check=False)


def timed(work, *args):
    os.sync()  # what the one left to be written must not slow the other
    start = time.monotonic()
    work(*args)
    return time.monotonic() - start


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kiln")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--require", type=float, help="fail when a cold ratio is below this")
    parser.add_argument("--only", default="", help="only works whose name contains this")
    parser.add_argument("--json", action="store_true")
    o = parser.parse_args()
    rows = []
    with fresh_disk() as folder:
        registry, facts = lab.start_registry(os.path.join(folder, "registry"), ["busybox"])
        sides = []
        try:
            sides = [BuildKit(folder, facts["host"]), Kiln(folder, facts["host"], os.path.abspath(o.kiln))]
            warm_up = pathlib.Path(folder, "warm-up")
            warm_up.mkdir()
            (warm_up / "Dockerfile").write_text("FROM busybox\nRUN true\n")
            for side in sides:
                side.build(warm_up)
            for name, make in WORKS.items():
                if o.only not in name:
                    continue
                took = {(side.name, form): [] for side in sides for form in ("cold", "again")}
                for number in range(o.rounds):
                    # A folder of its own for each round and side: neither may know the files from before.
                    for side in sides if number % 2 == 0 else reversed(sides):
                        context = pathlib.Path(folder, f"context-{len(rows)}-{side.name}-{number}")
                        context.mkdir()
                        make(context, number)
                        took[side.name, "cold"].append(timed(side.build, context))
                        time.sleep(2.5)  # a file younger than two seconds is read again, for its times prove nothing yet
                        took[side.name, "again"].append(timed(side.build, context))
                for form in ("cold", "again"):
                    theirs, ours = (statistics.median(took[side.name, form]) for side in sides)
                    rows.append({"work": name, "form": form, "buildkit": theirs, "kiln": ours, "ratio": theirs / ours})
        except subprocess.CalledProcessError as error:
            sys.exit(f"{error}\n{error.stderr.decode(errors='replace')}")
        finally:
            for side in sides:
                side.stop()
            registry.stop()
    if o.json:
        print(json.dumps(rows, indent=1))
    else:
        print(f"{'work':22} {'':6} {'BuildKit':>10} {'kiln':>10} {'ratio':>7}")
        for row in rows:
            print(f"{row['work']:22} {row['form']:6} {row['buildkit']:8.3f} s {row['kiln']:8.3f} s {row['ratio']:6.1f}x")
    slow = [row for row in rows if row["form"] == "cold" and o.require and row["ratio"] < o.require]
    if slow:
        sys.exit(f"below {o.require}x: " + ", ".join(row["work"] for row in slow))


if __name__ == "__main__":
    main()
