"""What a command costs: a disk of its own to run on, the time, the memory of all programs of a side, the bytes that reach the disk."""
import contextlib, os, subprocess, sys, tempfile, threading, time

MB = 1 << 20


@contextlib.contextmanager
def fresh_disk(gigabytes=24, bytes_per_inode=16384):
    """A folder on an ext4 of its own; a plain temporary folder where none can be mounted.

    Nothing is deleted on it while something is timed: for minutes after a large tree was removed, ext4 looks for each new inode
    among all those that were freed (`recently_deleted` in fs/ext4/ialloc.c), which makes creating 20,000 files ten times as slow
    for whoever comes next.
    """
    with tempfile.TemporaryDirectory(prefix="kiln-bench-") as folder:
        image, disk = os.path.join(folder, "disk.img"), os.path.join(folder, "disk")
        os.mkdir(disk)
        with open(image, "wb") as file:
            file.truncate(gigabytes << 30)
        try:
            # No initialisation in the background, which would go on beside the work that is timed.
            options = "lazy_itable_init=0,lazy_journal_init=0,nodiscard"
            subprocess.run(["mkfs.ext4", "-q", "-F", "-i", str(bytes_per_inode), "-E", options, image], check=True, capture_output=True)
            subprocess.run(["mount", "-o", "loop", image, disk], check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError) as error:
            print(f"no file system of its own can be had here ({error}), so figures depend on the past of this one", file=sys.stderr)
            yield folder
            return
        try:
            yield disk
        finally:
            subprocess.run(["umount", "--lazy", disk], check=False)


def written(folder):
    """Bytes that its disk was told to write since the machine's start; None when it has no counter (a network's, a tmpfs)."""
    device = os.stat(folder).st_dev
    try:
        with open(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}/stat") as file:
            return int(file.read().split()[6]) * 512
    except OSError:
        return None


def below(roots):
    """These processes and all that descend from them."""
    children = {}
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/stat", "rb") as file:
                parent = int(file.read().rpartition(b")")[2].split()[1])
        except (OSError, IndexError):
            continue
        children.setdefault(parent, []).append(int(pid))
    found, ahead = [], list(roots)
    while ahead:
        found.append(ahead.pop())
        ahead += children.get(found[-1], ())
    return found


def memory(roots, programs):
    """Bytes of memory that are no file's: private ones and shared ones, each page counted once among those that share it.

    Only of processes that are one of the side's own `programs`: what a RUN step executes is nobody's merit or fault."""
    total = 0
    for pid in below(roots):
        try:
            if os.path.basename(os.readlink(f"/proc/{pid}/exe")).removesuffix(" (deleted)") not in programs:
                continue
            with open(f"/proc/{pid}/smaps_rollup") as file:
                total += sum(int(line.split()[1]) for line in file if line.startswith(("Pss_Anon:", "Pss_Shmem:")))
        except (OSError, ValueError):
            continue  # it has just ended
    return total << 10


class Watch:
    """Looks at a side's memory while a command of it runs, and keeps the most that it saw."""

    def __init__(self, roots, programs, interval):
        self.roots, self.programs, self.interval, self.peak = roots, programs, interval, 0
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self.look, daemon=True)

    def look(self):
        while not self.ended.wait(self.interval):
            self.peak = max(self.peak, memory(self.roots(), self.programs))

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.ended.set()
        self.thread.join()


def processor():
    """Seconds of the processors that the children which have ended used."""
    now = os.times()
    return now.children_user + now.children_system


def timed(work, *args):
    os.sync()  # what the one left to be written must not slow the other
    start = time.monotonic()
    work(*args)
    return time.monotonic() - start


def watched(side, folder, work, *args, interval=0.01):
    """Peak memory and bytes written of a side's work. Looking costs time, so it is another run than the one that is timed."""
    os.sync()
    before = written(folder)
    with Watch(side.pids, side.programs, interval) as watch:
        work(*args)
    os.sync()
    return watch.peak, None if before is None else written(folder) - before
