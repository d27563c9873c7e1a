#!/usr/bin/env python3
"""Kills kiln at each of its mutating system calls, lets each fail, and looks whether anything is wrong afterwards.

usage: faults.py KILN [--kills N] [--errors N] [--jobs N] [--seconds N] [--seed N] [--only PART] [--modes A,B] [--disk] [--list]

A case is a mode, a command, a fault and a number, written `root/build/kill/117`: the 117th call of that kind is where it happens.
--only runs those whose name holds the PART. After each case:

* a killed kiln leaves no process and no mount; one that met an error ends by itself, not by a bug of its own, and says the error
  and a path;
* what it said was done is done, and nothing stands under a name that isn't whole;
* the same command works, with no repair between, and gives the bytes that an undisturbed one gives;
* when all is removed the store has the files of one that nothing was done to.

The cases are spread evenly over all calls of all commands; --seconds ends the run early and says how far it came.
All runs in a memory file system in a mount namespace of its own, unless --disk.
"""
import argparse, collections, ctypes, errno, hashlib, json, multiprocessing, os, pathlib, pwd, queue, random, shutil, subprocess, sys
import tarfile, tempfile, time, traceback, urllib.error, urllib.request

sys.dont_write_bytecode = True
import lab, tracer

EPOCH = "1700000000"
MODES = ("root", "copy", "rootless", "one-id")

SPACE = {"write", "pwrite64", "writev", "pwritev", "copy_file_range", "fallocate", "ftruncate", "mkdir", "mkdirat", "symlink", "symlinkat",
         "link", "linkat", "mknod", "mknodat", "rename", "renameat", "renameat2", "setxattr", "lsetxattr", "fsetxattr"}
SYNCS = {"fsync", "fdatasync", "syncfs"}
CHANGES = SPACE | SYNCS | {"unlink", "unlinkat", "rmdir", "chmod", "fchmod", "fchmodat", "chown", "fchown", "lchown", "fchownat", "utimensat"}


def creates(call):
    return call.name in tracer.OPENS and bool(call.flags() & os.O_CREAT)


# fault: the error, whether it stays from then on, and which calls meet it.
ERRORS = {
    "full-once": (errno.ENOSPC, False, lambda call: call.name in SPACE or creates(call)),
    "full": (errno.ENOSPC, True, lambda call: call.name in SPACE - {"rename", "renameat", "renameat2"} or creates(call)),
    "quota": (errno.EDQUOT, False, lambda call: call.name in SPACE or creates(call)),
    "sync": (errno.EIO, False, lambda call: call.name in SYNCS),
    "broken": (errno.EIO, False, lambda call: call.name in CHANGES or call.name in tracer.OPENS),
    "read": (errno.EIO, False, lambda call: call.name in tracer.READS),
    "files": (errno.EMFILE, False, lambda call: call.name in tracer.OPENS),
    "read-only": (errno.EROFS, True, lambda call: call.name in CHANGES - SYNCS or call.name in tracer.OPENS and call.mutates()),
    "interrupted": (errno.EINTR, False, lambda call: call.name in {"write", "read", "writev", "readv", "pread64", "pwrite64"}),
}

# What musl calls them, of which the static program is made.
MUSL = {errno.EIO: "I/O error", errno.EMFILE: "No file descriptors available", errno.EDQUOT: "Quota exceeded"}


class Command:
    """A row: what is done, on which store, and how its result is looked at."""

    def __init__(self, name, argv, store="warm", looks="", modes=MODES, share=1):
        self.name, self.argv, self.store, self.looks, self.modes, self.share = name, argv, store, looks, modes, share


BUILD = ["build", "--progress=plain", "-t", "x", "-o", "type=oci,dest={home}/out.tar,rewrite-timestamp=true"]
COMMANDS = [
    Command("start", ["images"], store=None),
    Command("build", BUILD + ["{w}/ctx"], looks="archive", share=4),
    Command("rebuild", BUILD + ["{w}/changed"], store="built", looks="archive", share=2),
    Command("caches", ["build", "-q", "--cache-to", "type=local,dest={home}/cache,mode=max", "{w}/ctx"], store="built", modes=("root",)),
    Command("folder", ["build", "-q", "-o", "type=local,dest={home}/out", "{w}/changed"], store="built", looks="folder",
            modes=("root", "rootless")),
    Command("pull", ["pull", "tiny"], looks="saved tiny", share=2),
    Command("push", ["push", "{host}/f/w{n}"], store="built", looks="pushed", share=2),
    Command("save", ["save", "--format", "oci", "-o", "{home}/out.tar", "x"], store="built", looks="archive"),
    Command("load", ["load", "-i", "{w}/x.tar"], looks="saved x", share=2),
    Command("rmi", ["rmi", "-f", "x"], store="built"),
    Command("tag", ["tag", "x", "y"], store="built", looks="saved y"),
    Command("prune", ["prune", "-a", "-f"], store="dangling", share=2),
    Command("login", ["login", "-u", "somebody", "-p", "secret", "{guarded}"], modes=("root", "rootless"), looks="login"),
]


def digest(path):
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        return None


def tree(path):
    """What a folder holds, as one text."""
    found = []
    for folder, _, files in sorted(os.walk(path)):
        found += [os.path.relpath(folder, path)]
        found += [f"{name} {digest(os.path.join(folder, name))}" for name in sorted(files) if not os.path.islink(os.path.join(folder, name))]
    return "\n".join(found) if found else None


def size(store):
    """The files of a store and their bytes, without what only makes later builds faster and what a failed sync leaves as a warning; and
    what lies on its way in or out."""
    files, total, passing = 0, 0, []
    for folder, folders, names in os.walk(store):
        below = os.path.relpath(folder, store).split("/")
        if any(part in ("memo", "mount-points", "host") for part in below):
            folders.clear()
            continue
        if below[-1] in ("ingest", "trash", "locks"):
            passing += [os.path.join(*below, name) for name in folders + names]
            folders.clear()
            continue
        names = [name for name in names if name != "epoch"]
        files += len(names)
        total += sum(os.lstat(os.path.join(folder, name)).st_size for name in names)
    return files, total, passing


class World:
    """What all cases share: base image, contexts, registries and stores to begin with."""

    def __init__(self, kiln, folder, jobs):
        self.w = pathlib.Path(folder)
        self.program = str(self.w / "kiln")
        shutil.copy(kiln, self.program)
        os.chmod(self.w, 0o755)
        self.server, facts = lab.start_registry(str(self.w / "registry"))
        self.host, self.storage = facts["host"], facts["storage"]
        self.other, guarded = lab.start_registry(str(self.w / "guarded"), auth="somebody:secret")
        self.guarded = guarded["host"]
        self.jobs, self.references = jobs, {}
        self.contexts()
        home = self.home("root", "make-base")
        self.must(home, ["build", "-q", "-t", f"{self.host}/library/tiny", str(self.w / "base")])
        self.must(home, ["push", f"{self.host}/library/tiny"])

    def contexts(self):
        base = self.w / "base"
        (base / "root/bin").mkdir(parents=True)
        shutil.copy("/bin/busybox", base / "root/bin/busybox")
        for name in ("sh", "mkdir", "rm", "mv", "cat", "ln"):
            os.link(base / "root/bin/busybox", base / f"root/bin/{name}")
        for name in ("etc/gone", "etc/kept", "data/a/b", "data/c"):
            (base / "root" / name).parent.mkdir(parents=True, exist_ok=True)
            (base / "root" / name).write_text(name)
        (base / "Dockerfile").write_text("FROM scratch\nCOPY root /\n")
        for name in ("ctx", "changed"):
            context = self.w / name
            (context / "src/deep").mkdir(parents=True)
            for i in range(6):
                (context / f"src/f{i}").write_text(f"{i}\n" * 300)
            (context / "src/deep/last").write_text(name)
            os.symlink("f1", context / "src/link")
            with tarfile.open(context / "more.tar", "w") as tar:
                tar.add(context / "src/f2", "in/tar")
            (context / "Dockerfile").write_text(
                "FROM tiny AS one\nRUN mkdir /o && echo out > /o/z && ln /o/z /o/y\nFROM tiny\nCOPY src /src\n"
                "RUN --mount=type=cache,target=/c echo x > /c/x; rm -r /etc/gone /data && mkdir /data && mv /src/f1 /data/\n"
                "ADD more.tar /\nCOPY --from=one /o /o\nWORKDIR /w\n")
        subprocess.run(["find", str(self.w / "ctx"), str(self.w / "changed"), "-exec", "touch", "-h", "-d", f"@{EPOCH}", "{}", "+"], check=True)

    def home(self, mode, name):
        return Home(self, mode, self.w / name)

    def must(self, home, argv):
        code, text = home.run(argv)
        if code != 0:
            sys.exit(f"faults.py: kiln {' '.join(argv)}: {code}\n{text}")

    def stores(self, mode):
        """The stores that cases of this mode begin with."""
        home = self.home(mode, f"make-{mode}")
        # What the mode can do is found out at the first RUN, and remembered; the base is not.
        for step in ("warm", "built", "dangling"):
            if step == "warm":
                self.must(home, home.words(BUILD + ["{w}/ctx"], 0))
                self.must(home, ["rmi", "-f", "x"])
                self.must(home, ["prune", "-a", "-f"])
            elif step == "built":
                self.must(home, home.words(BUILD + ["{w}/ctx"], 0))
                if not (self.w / "x.tar").exists():
                    self.must(home, ["save", "--format", "oci", "-o", str(home.path / "x.tar"), "x"])
                    shutil.copy(home.path / "x.tar", self.w / "x.tar")
                for n in range(self.jobs):
                    self.must(home, ["tag", "x", f"{self.host}/f/w{n}"])
            else:
                self.must(home, ["rmi", "-f", "x", *(f"{self.host}/f/w{n}" for n in range(self.jobs))])
            subprocess.run(["cp", "-a", str(home.store), str(self.w / f"{mode}-{step}")], check=True)


class Home:
    """Where one case after the other takes place."""

    def __init__(self, world, mode, path):
        self.world, self.mode, self.path, self.store = world, mode, path, path / "store"
        who = {"rootless": "kiln-subids", "one-id": "kiln-plain"}.get(mode)
        self.who = pwd.getpwnam(who) if who else None
        self.env = {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": str(path), "KILN_ROOT": str(self.store), "XDG_CONFIG_HOME": str(path),
                    "XDG_DATA_HOME": str(path), "XDG_RUNTIME_DIR": str(path), "TMPDIR": str(path), "NO_COLOR": "1",
                    "SOURCE_DATE_EPOCH": EPOCH, "DOCKER_CONFIG": str(path / "docker")}
        if mode == "copy":
            self.env["KILN_SNAPSHOTS"] = "copy"
        self.wrap = []
        if self.who:
            self.wrap = ["/usr/bin/setpriv", f"--reuid={self.who.pw_uid}", f"--regid={self.who.pw_gid}", "--clear-groups", "--inh-caps=-all",
                         "--ambient-caps=-all", "--"]
        self.reset(None)

    def reset(self, store):
        shutil.rmtree(self.path, ignore_errors=True)
        (self.path / "kiln").mkdir(parents=True)
        mirrors = f'[registry."docker.io"]\nmirrors = ["{self.world.host}"]\n'
        (self.path / "kiln/kiln.toml").write_text(mirrors)
        if self.who:
            for path in (self.path, self.path / "kiln"):
                os.chown(path, self.who.pw_uid, self.who.pw_gid)
        if store:
            subprocess.run(["cp", "-a", str(self.world.w / f"{self.mode}-{store}"), str(self.store)], check=True)

    def words(self, argv, n):
        world = self.world
        return [word.format(home=self.path, w=world.w, host=world.host, guarded=world.guarded, n=n) for word in argv]

    def run(self, argv):
        try:
            done = subprocess.run([*self.wrap, self.world.program, *argv], env=self.env, cwd=self.path, stdin=subprocess.DEVNULL,
                                  stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=60)
        except subprocess.TimeoutExpired as late:
            return 124, f"still running after a minute: {(late.stdout or b'').decode(errors='replace')}"
        return done.returncode, done.stdout.decode(errors="replace")

    def traced(self, argv, decide):
        output = str(self.path / "said")
        outcome = tracer.run([*self.wrap, self.world.program, *argv], self.env, str(self.path), output, self.world.program, decide,
                             tracer.CALLS)
        return outcome, pathlib.Path(output).read_text(errors="replace")

    def inside(self, call):
        """Whether a call is about a file of this case, and not about the kernel's own, a pipe or a socket."""
        target = call.target()
        # What it says must reach us.
        if target == str(self.path / "said"):
            return False
        return target.startswith(str(self.path)) or target[:1] not in ("/", "") and ":[" not in target and target != "?"

    def result(self, looks, n, finished=True):
        """The result of the command, as something that can be compared; None where there is none."""
        if looks == "archive":
            beside = [] if not finished else sorted(path.name for path in self.path.iterdir() if path.name.startswith(".kiln-"))
            return f"{digest(self.path / 'out.tar')} {beside or ''}" if (self.path / "out.tar").exists() else None
        if looks == "folder":
            return tree(self.path / "out")
        if looks.startswith("saved"):
            saved = self.path / "saved.tar"
            saved.unlink(missing_ok=True)
            code, text = self.run(["save", "--format", "oci", "-o", str(saved), looks.split()[1]])
            return digest(saved) if code == 0 else None if "no image" in text.lower() or "no such image" in text.lower() else text
        if looks == "pushed":
            return self.pushed(n)
        if looks == "login":
            return "\n".join(sorted(p.read_text() for p in self.path.rglob("*.json") if self.store not in p.parents)) or None
        return None

    def pushed(self, n):
        """The manifest in the registry, all of whose blobs must be there."""
        place = f"http://{self.world.host}/v2/f/w{n}"
        accept = {"Accept": "application/vnd.oci.image.manifest.v1+json, application/vnd.docker.distribution.manifest.v2+json"}
        try:
            with urllib.request.urlopen(urllib.request.Request(f"{place}/manifests/latest", headers=accept), timeout=20) as answer:
                text = answer.read()
        except urllib.error.HTTPError as error:
            return None if error.code == 404 else f"{error}"
        manifest = json.loads(text)
        for blob in [manifest["config"], *manifest["layers"]]:
            try:
                urllib.request.urlopen(urllib.request.Request(f"{place}/blobs/{blob['digest']}", method="HEAD"), timeout=20).close()
            except urllib.error.HTTPError as error:
                return f"the manifest names {blob['digest']}: {error}"
        return hashlib.sha256(text).hexdigest()

    def begin(self, command, n):
        self.reset(command.store)
        if command.name == "push":
            shutil.rmtree(f"{self.world.storage}/docker/registry/v2/repositories/f/w{n}", ignore_errors=True)

    def removed(self):
        """What the store is when all has been removed from it."""
        names = ["x", "y", "tiny", *(f"{self.world.host}/f/w{n}" for n in range(self.world.jobs))]
        for argv in (["rmi", "-f", *names], ["prune", "-a", "-f"]):
            code, text = self.run(argv)
            if code != 0:
                return None, f"kiln {argv[0]} afterwards: {code}: {text}"
        end = time.monotonic() + 5
        while True:
            found = size(self.store)
            if not found[2] or time.monotonic() > end:
                return found, ""
            time.sleep(0.01)


class Reference:
    """What a command does when nothing disturbs it."""

    def __init__(self, home, command):
        home.begin(command, 0)
        self.counts, self.children = collections.Counter(), []
        outcome, text = home.traced(home.words(command.argv, 0), lambda call: self.count(home, call))
        if outcome.code != 0 or outcome.left:
            sys.exit(f"faults.py: {home.mode}/{command.name} without a fault: {outcome.code} {outcome.left}\n{text}")
        self.result = home.result(command.looks, 0)
        self.size, text = home.removed()
        if self.size is None or self.size[2]:
            sys.exit(f"faults.py: {home.mode}/{command.name} without a fault leaves {self.size} {text}")

    def count(self, home, call):
        if call.mutates():
            self.counts["kill"] += 1
            if call.process != call.main:
                self.counts["child"] += 1
        if home.inside(call):
            for name, (_, _, meets) in ERRORS.items():
                self.counts[name] += meets(call)


# Processes that are forked off find theirs here.
WORLDS = []


def undisturbed(row):
    mode, name = row
    home = Home(WORLDS[0], mode, WORLDS[0].w / f"r{os.getpid()}-{mode}")
    try:
        return Reference(home, next(c for c in COMMANDS if c.name == name))
    except SystemExit as error:
        raise RuntimeError(str(error)) from None


def fault(home, kind, n):
    """What the tracer asks for each call, and where the fault came to be."""
    seen, hit = [0], []

    def decide(call):
        if kind in ("kill", "child"):
            if not call.mutates() or kind == "child" and call.process == call.main:
                return None
            seen[0] += 1
            if seen[0] != n:
                return None
            hit.append(str(call))
            return "kill" if kind == "kill" else "self"
        number, stays, meets = ERRORS[kind]
        if not home.inside(call) or not meets(call):
            return None
        seen[0] += 1
        if seen[0] != n and not (stays and seen[0] > n):
            return None
        hit.append(str(call))
        return number

    return decide, hit


def mounts(folder):
    with open("/proc/self/mountinfo") as file:
        return sum(folder in line for line in file)


def check(home, command, kind, n, reference, worker):
    """Runs one case; what was wrong, where the fault was, and whether it ended the command."""
    wrong = []
    home.begin(command, worker)
    argv = home.words(command.argv, worker)
    decide, hit = fault(home, kind, n)
    before = mounts(str(home.path))
    outcome, said = home.traced(argv, decide)
    where = hit[0] if hit else "nowhere"
    if outcome.left:
        wrong.append(f"left running: {outcome.left}")
    if mounts(str(home.path)) != before:
        wrong.append("left mounted")
    if outcome.late:
        wrong.append("hangs")
    if outcome.code == 70 or "bug of its own" in said or "panicked at" in said:
        wrong.append("panics")
    elif kind != "kill" and outcome.code is not None and outcome.code < 0:
        wrong.append(f"dies of signal {-outcome.code}")
    if kind in ERRORS and outcome.code:
        number = ERRORS[kind][0]
        if os.strerror(number).lower() not in said.lower() and MUSL.get(number, "?") not in said:
            wrong.append(f"doesn't say {os.strerror(number)!r}")
        # Files of a sandbox's own file system have no path, but a name.
        if not set("/`") & set(said.split("ERROR", 1)[-1]):
            wrong.append("names no path")
        if kind == "interrupted":
            wrong.append("doesn't try again")
    result = home.result(command.looks, worker, outcome.code == 0)
    # A folder is written in place.
    partly = outcome.code != 0 and (result is None or command.looks == "folder")
    if command.looks and result != reference.result and not partly:
        wrong.append(f"ended with {outcome.code}, and its result is {result}")
    code, text = home.run(argv)
    if code != 0:
        wrong.append(f"the next run fails with {code}: {text}")
    elif home.result(command.looks, worker) != reference.result:
        wrong.append("the next run gives something else")
    found, text = home.removed()
    if found is None:
        wrong.append(text)
    elif (found[0], found[2]) != (reference.size[0], reference.size[2]) or abs(found[1] - reference.size[1]) > 64:
        wrong.append(f"left in the store: {found}, not {reference.size}")
    if wrong:
        wrong.append(f"(it ended with {outcome.code} and said:) {said[-1500:]}")
    return wrong, where, outcome.code != 0


def work(world, worker, tasks, results, references):
    homes = {}
    os.nice(5)
    while True:
        task = tasks.get()
        if task is None:
            return
        mode, name, kind, n = task
        home = homes.setdefault(mode, Home(world, mode, world.w / f"w{worker}-{mode}"))
        command = next(c for c in COMMANDS if c.name == name)
        begin = time.monotonic()
        try:
            wrong, where, ended = check(home, command, kind, n, references[mode, name], worker)
        except Exception:
            wrong, where, ended = [traceback.format_exc()], "the harness", True
        results.put((task, wrong, where, ended, time.monotonic() - begin))


def spread(references, kinds, budget, random_numbers, only):
    """Cases of these kinds whose names hold `only`, evenly over all the calls, each once before any is taken twice."""
    rows = []
    for (mode, name), reference in references.items():
        for kind in (kind for kind in kinds if only in f"{mode}/{name}/{kind}"):
            share = next(c.share for c in COMMANDS if c.name == name)
            rows += [(random_numbers.random() ** (1 / share), (mode, name, kind, n)) for n in range(1, reference.counts[kind] + 1)]
    every = len(rows)
    rows.sort(reverse=True)
    chosen = [task for _, task in rows[:budget]]
    # More is asked for than there are: threads meet in another order the next time.
    while rows and len(chosen) < budget:
        chosen.append(random_numbers.choice(rows)[1])
    return chosen, every


def private_memory(folder):
    """A memory file system at the folder that only this process and its children see."""
    if ctypes.CDLL(None, use_errno=True).unshare(0x20000) != 0:
        sys.exit("faults.py: needs root, or --disk")
    subprocess.run(["mount", "--make-rprivate", "/"], check=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4g,mode=755", "kiln-faults", folder], check=True)


def main():
    parser = argparse.ArgumentParser(usage=__doc__.split("\n\n")[1][7:])
    parser.add_argument("kiln")
    for name, default in (("kills", 5000), ("errors", 3000), ("jobs", os.cpu_count()), ("seconds", 0), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--only", default="")
    parser.add_argument("--modes", default=",".join(MODES))
    parser.add_argument("--disk", action="store_true")
    parser.add_argument("--list", action="store_true")
    options = parser.parse_args()
    seed = options.seed or random.randrange(1 << 30)
    folder = tempfile.mkdtemp(prefix="kiln-faults-")
    try:
        if not options.disk:
            private_memory(folder)
        world = World(options.kiln, folder, options.jobs)
        try:
            return torture(world, options, seed)
        finally:
            world.server.stop()
            world.other.stop()
    finally:
        if not options.disk:
            subprocess.run(["umount", "-l", folder], check=False)
        shutil.rmtree(folder, ignore_errors=True)


def torture(world, options, seed):
    begin, only = time.monotonic(), options.only.split("/")
    modes = options.modes.split(",")
    for mode in modes:
        world.stores(mode)
    rows = [(mode, command.name) for mode in modes for command in COMMANDS
            if mode in command.modes and (len(only) < 4 or only[:2] == [mode, command.name])]
    # In processes that have no children but those that they trace.
    WORLDS.append(world)
    with multiprocessing.Pool(options.jobs) as pool:
        references = dict(zip(rows, pool.map(undisturbed, rows, chunksize=1)))
    if options.list:
        for (mode, name), reference in references.items():
            print(f"{mode}/{name}: {dict(reference.counts)}")
    numbers = random.Random(seed)
    if options.only.count("/") == 3:
        mode, name, kind, n = options.only.split("/")
        tasks, kills, errors = [(mode, name, kind, int(n))], 0, 0
    else:
        some = lambda kinds, budget: spread(references, kinds, budget, numbers, options.only)
        (killed, kills), (failed, errors) = some(["kill", "child"], options.kills), some(list(ERRORS), options.errors)
        tasks = killed + failed
        numbers.shuffle(tasks)
    print(f"seed {seed}: there are {kills} points to kill at and {errors} errors; {len(tasks)} cases, {options.jobs} at once", flush=True)
    return carry_out(world, options, references, tasks, begin)


def carry_out(world, options, references, tasks, begin):
    waiting, results = multiprocessing.Queue(), multiprocessing.Queue()
    workers = [multiprocessing.Process(target=work, args=(world, n, waiting, results, references), daemon=True) for n in range(options.jobs)]
    for worker in workers:
        worker.start()
    given, done, bad, places, ended = 0, collections.Counter(), 0, set(), 0
    spent = collections.Counter()
    tasks = iter(tasks)
    pending = 0
    while True:
        while pending < 2 * options.jobs and not (options.seconds and time.monotonic() - begin > options.seconds):
            task = next(tasks, None)
            if task is None:
                break
            waiting.put(task)
            pending, given = pending + 1, given + 1
        if not pending:
            break
        try:
            (mode, name, kind, n), wrong, where, stopped, took = results.get(timeout=300)
        except queue.Empty:
            print("WRONG: the harness itself hangs")
            bad += 1
            break
        pending -= 1
        done["errors" if kind in ERRORS else "kills"] += 1
        ended += stopped
        spent[mode, name] += took
        places.add((mode, name, kind, where))
        if wrong:
            bad += 1
            print(f"WRONG {mode}/{name}/{kind}/{n} at {where.replace(str(world.w), '')}:", *wrong, sep="\n  ", flush=True)
    for _ in workers:
        waiting.put(None)
    for worker in workers:
        worker.join(10)
        worker.kill()
    print(f"{done['kills']} kills and {done['errors']} errors in {time.monotonic() - begin:.0f} s, {ended} ended the command; {bad} wrong")
    return 1 if bad or not given else 0


if __name__ == "__main__":
    sys.exit(main())
