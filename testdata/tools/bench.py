#!/usr/bin/env python3
"""Times kiln against other builders, and kiln against itself with ten times the work: all of it in one run on one machine.

usage: bench.py KILN [--rounds N] [--only WORK] [--peers buildkit,buildah,podman] [--others N] [--part works|growth]
                     [--most COUNT] [--write FILE] [--require PART]

Works: in a round all sides do the same work, one after the other, and every round begins with another one. Each round has a disk,
stores and daemons of its own. `cold`: a side has nothing of the work but the base image (and not even that where fetching it is the
work). `again`: nothing changed since. A ratio is the other side's time divided by kiln's in the same round; given are the least,
the median and the largest. The first peer is in every round, the others in one (`--others`). One more round, before the others and not
timed, is for peak memory (private and shared pages of all the side's own programs, without the page cache) and for the bytes that
reached the disk.

Growth: one side, kiln, does 10, 100, 1,000, … times the same. "One more" is what a unit costs between this line and the one
before; where that rises by half, cost grows faster than the work.

--require 0.9 fails when a median is below 0.9 times its goal.
"""
import argparse, contextlib, functools, http.server, os, pathlib, platform, shlex, shutil, signal, statistics, subprocess, sys, tempfile, threading
import time, urllib.error, urllib.request

sys.dont_write_bytecode = True
import gauge, growth, lab, sides, works

FORMS = ("cold", "again")


class Packages(http.server.BaseHTTPRequestHandler):
    """A proxy for apt that keeps all it ever fetched, so that no network is timed."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        kept = os.path.join(lab.cache_dir(), "packages-1", urllib.request.quote(self.path, safe=""))
        if not os.path.exists(kept):
            try:
                with urllib.request.urlopen(self.path) as answer:
                    content = answer.read()
            except urllib.error.HTTPError as error:
                self.send_response(error.code)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            os.makedirs(os.path.dirname(kept), exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=os.path.dirname(kept), delete=False) as file:
                file.write(content)
            os.rename(file.name, kept)
        self.send_response(200)
        self.send_header("Content-Length", str(os.path.getsize(kept)))
        self.end_headers()
        with open(kept, "rb") as file:
            shutil.copyfileobj(file, self.wfile)

    def log_message(self, *_):
        pass


def start_packages():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Packages)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"http://127.0.0.1:{server.server_address[1]}"


def put_image(host, name, make):
    """Makes a layout and has the registry hold it as `library/name:latest`."""
    with tempfile.TemporaryDirectory(prefix="kiln-bench-") as folder:
        layout = make(pathlib.Path(folder), name)
        subprocess.run(["skopeo", "copy", "-q", "--dest-tls-verify=false", f"oci:{layout}:latest", f"docker://{host}/library/{name}:latest"],
                       check=True)


class Round:
    """A disk with the sides that take part, each of which has the base image and nothing else."""

    def __init__(self, stack, o, mirror, work, number):
        self.folder = stack.enter_context(gauge.fresh_disk())
        self.work, self.context = work, pathlib.Path(self.folder, "context")
        self.context.mkdir()
        taking_part = o.peers if number <= o.others else o.peers[:1]
        peers = [sides.PEERS[name] for name in taking_part]
        if work.archive:
            peers = [sides.NewBuildKit if peer is sides.BuildKit else peer for peer in peers]
        self.sides = [sides.Kiln(self.folder, mirror, o.kiln)]
        stack.callback(lambda: [side.stop() for side in self.sides])
        for peer in peers:
            self.sides.append(peer(self.folder, mirror))
        works.dockerfile(self.context, f"FROM {work.base}", "RUN true")
        for side in self.sides:
            side.build(self.context)
        shutil.rmtree(self.context)
        self.context.mkdir()
        work.make(self.context, number)
        time.sleep(2.5)  # a file younger than two seconds is read again, for its times prove nothing yet
        at = number % len(self.sides)
        self.order = self.sides[at:] + self.sides[:at]

    def act(self, side):
        if self.work.archive:
            to = os.path.join(self.folder, f"{side.name}.tar")
            return functools.partial(side.archive, self.context, self.work.archive, to), to
        return functools.partial(side.build, self.context), None


def compare(o, mirror, work):
    """For each form, what each side took in each round; for each side, its memory, its bytes and the size of what it wrote."""
    took, spent, sizes, failed = {form: {} for form in FORMS}, {}, {}, {}
    forms = FORMS if work.again else FORMS[:1]
    for number in range(0 if o.memory else 1, o.rounds + 1):
        with contextlib.ExitStack() as stack:
            this = Round(stack, o, mirror, work, number)
            for side in this.order:
                if side.name in failed:
                    continue
                act, archive = this.act(side)
                try:
                    if number == 0:
                        spent[side.name] = gauge.watched(side, this.folder, act)
                        continue
                    for form in forms:
                        took[form].setdefault(side.name, []).append(gauge.timed(act))
                        print(f"{work.name}, {form}, round {number}: {side.name} {took[form][side.name][-1]:.3f} s", file=sys.stderr, flush=True)
                except subprocess.CalledProcessError as error:
                    if side.name == "kiln":
                        raise
                    failed[side.name] = sides.reason(error)
                    print(f"{work.name}: {side.name} failed: {failed[side.name]}", file=sys.stderr, flush=True)
                    continue
                if archive:
                    sizes[side.name] = os.path.getsize(archive)
                    os.unlink(archive)
    for form in forms:
        took[form] = {name: seconds for name, seconds in took[form].items() if name not in failed}
    return {form: took[form] for form in forms}, {name: (*spent.get(name, (None, None)), sizes.get(name)) for name in took["cold"]}


def three(values, form):
    return " / ".join(format(value, form) for value in (min(values), statistics.median(values), max(values)))


def size(count):
    return "" if count is None else f"{count / 1e6:.0f} MB"


def compared(o, mirror):
    """Lines of a table in Markdown, and what misses its goal."""
    lines = ["| work | form | side | seconds (min / median / max) | times kiln's (min / median / max) | goal | peak memory | written | archive |",
             "|---|---|---|--:|--:|--:|--:|--:|--:|"]
    missed = []
    for work in works.WORKS:
        if o.only not in work.name:
            continue
        by_form, spent = compare(o, mirror, work)
        for form, took in by_form.items():
            for name, seconds in sorted(took.items(), key=lambda item: list(took).index(item[0]) if item[0] != "kiln" else -1):
                peak, written, archive = spent[name] if form == "cold" else (None, None, None)
                goal = ratio = ""
                if name != "kiln":
                    ratios = [theirs / ours for theirs, ours in zip(seconds, took["kiln"])]
                    ratio = three(ratios, ".2f")
                    if name.startswith("BuildKit") and form in work.goals:
                        goal = f"{work.goals[form]:.2f}"
                        if statistics.median(ratios) < work.goals[form] * (o.require or 1):
                            missed.append(f"{work.name}, {form}: {statistics.median(ratios):.2f} of {goal}")
                elif work.longest:
                    goal = f"≤ {1.03 * work.longest:.2f} s"
                    if min(seconds) > 1.03 * work.longest:
                        missed.append(f"{work.name}: {min(seconds):.3f} s of {1.03 * work.longest:.2f}")
                lines.append(f"| {work.name if name == 'kiln' else ''} | {form if name == 'kiln' else ''} | {name} | {three(seconds, '.3f')} "
                             f"| {ratio} | {goal} | {size(peak)} | {size(written)} | {size(archive)} |")
    return lines, missed


def machine():
    facts = dict(line.split(":", 1) for line in open("/proc/cpuinfo").read().replace("\t", "").splitlines() if ":" in line)
    memory = int(open("/proc/meminfo").readline().split()[1]) >> 20
    versions = []
    for package in ("docker.io", "buildah", "podman", "docker-registry"):
        found = subprocess.run(["dpkg-query", "-W", "-f", "${Version}", package], capture_output=True, text=True)
        versions.append(f"{package} {found.stdout or '(none)'}")
    return (f"{os.cpu_count()} processors ({facts.get('model name', platform.machine()).strip()}), {memory} GiB, Linux {platform.release()}, "
            f"ext4 on a loop device; Debian's {', '.join(versions)}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kiln")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="", help="only works and series whose name contains this")
    parser.add_argument("--peers", default="buildkit,buildah,podman", help="sides beside kiln")
    parser.add_argument("--others", type=int, default=1, help="so many rounds with all peers; in those after them the first alone")
    parser.add_argument("--part", choices=["works", "growth"], help="only this part")
    parser.add_argument("--most", type=int, default=1_000_000, help="no series goes beyond this count")
    parser.add_argument("--no-memory", dest="memory", action="store_false", help="leave the untimed round for memory out")
    parser.add_argument("--write", help="write the tables to this file, too")
    parser.add_argument("--require", type=float, help="fail when a goal isn't reached to this part")
    o = parser.parse_args()
    o.kiln, o.peers = os.path.abspath(o.kiln), [name for name in o.peers.split(",") if name]
    # Whoever ends it early leaves no daemon behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    before = os.getloadavg()
    version = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=os.path.dirname(__file__), capture_output=True, text=True).stdout.strip()
    command = shlex.join(["testdata/tools/bench.py", "KILN", *sys.argv[2:]])
    about = __doc__.rstrip().split("\n\n")  # first line, usage, works, growth, --require
    head = ["# Benchmarks", "", about[0], "", f"Made by `{command}` (kiln of {version or 'unknown origin'}); load before: "
            f"{before[0]:.1f}. {machine()}.", "", "\n\n".join(about[2:4]), ""]

    def write():
        if o.write:
            pathlib.Path(o.write).write_text("\n".join(head + text))

    text, failed = [], []
    with tempfile.TemporaryDirectory(prefix="kiln-bench-") as folder:
        seeds = ["busybox"] + (["debian"] if o.part != "growth" and any(o.only in w.name and w.base.startswith("debian") for w in works.WORKS) else [])
        registry, facts = lab.start_registry(os.path.join(folder, "registry"), seeds)
        put = functools.partial(put_image, facts["host"])
        os.environ["KILN_BENCH_PACKAGES"] = start_packages()
        try:
            if o.part != "growth":
                if any(o.only in work.name and work.make is works.unpack for work in works.WORKS):
                    put("big", works.big_base(1, 800))
                lines, failed = compared(o, facts["host"])
                text += ["## Against other builders", "", *lines, ""]
                write()  # Who ends it here has that.
            if o.part != "works":
                lines, bad = growth.table(o, facts["host"], put)
                text += ["## Growth", "", *lines, "", f"Worse than linear: {'; '.join(bad) or 'nothing'}.", ""]
        except subprocess.CalledProcessError as error:
            sys.exit(f"{error}\n{(error.stderr or b'').decode(errors='replace')}")
        finally:
            registry.stop()
    print("\n".join(text))
    write()
    if failed:
        print("goals missed: " + "; ".join(failed), file=sys.stderr)
        if o.require:
            sys.exit(1)


if __name__ == "__main__":
    main()
