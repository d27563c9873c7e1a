"""Runs a command with all its processes traced, and lets one of its system calls fail or its process be killed there.

strace can do that, too (`inject=`), but counts the calls of each thread by itself, and tells nobody which was hit. Here all
mutating calls of the program, of whatever thread and process, are numbered in the order in which they happen. A seccomp filter
picks them, so the others cost nothing. When all is over it is known which processes were left: they are all traced.

x86-64 only.
"""
import ctypes, errno, os, signal, struct, time

LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
LIBC.ptrace.restype = ctypes.c_long

CONT, GETREGS, SETREGS, GETEVENTMSG, SEIZE, LISTEN = 7, 12, 13, 0x4201, 0x4206, 0x4208
EVENT_EXEC, EVENT_SECCOMP, EVENT_STOP = 4, 7, 128
# Fork, vfork, clone, exec, seccomp; and all are killed when this process is.
OPTIONS = 0x2 | 0x4 | 0x8 | 0x10 | 0x80 | 0x100000
WALL = 0x40000000
RAX, RDX, RSI, RDI, R10, ORIG_RAX = 10, 12, 13, 14, 7, 15

# name: number, and which argument is a descriptor ("f0"), a path ("p1"), or two paths ("p1p3").
CALLS = {
    "write": (1, "f0"), "pwrite64": (18, "f0"), "writev": (20, "f0"), "pwritev": (296, "f0"), "sendfile": (40, "f0"),
    "splice": (275, "f2"), "copy_file_range": (326, "f2"), "ftruncate": (77, "f0"), "fallocate": (285, "f0"), "ioctl": (16, "f0"),
    "fsync": (74, "f0"), "fdatasync": (75, "f0"), "sync_file_range": (277, "f0"), "syncfs": (306, "f0"), "flock": (73, "f0"),
    "open": (2, "p0"), "openat": (257, "p1"), "openat2": (437, "p1"), "creat": (85, "p0"),
    "mkdir": (83, "p0"), "mkdirat": (258, "p1"), "rmdir": (84, "p0"), "unlink": (87, "p0"), "unlinkat": (263, "p1"),
    "rename": (82, "p1"), "renameat": (264, "p3"), "renameat2": (316, "p3"), "link": (86, "p1"), "linkat": (265, "p3"),
    "symlink": (88, "p1"), "symlinkat": (266, "p2"), "mknod": (133, "p0"), "mknodat": (259, "p1"), "truncate": (76, "p0"),
    "chmod": (90, "p0"), "fchmod": (91, "f0"), "fchmodat": (268, "p1"), "fchmodat2": (452, "p1"),
    "chown": (92, "p0"), "fchown": (93, "f0"), "lchown": (94, "p0"), "fchownat": (260, "p1"), "utimensat": (280, "p1"),
    "setxattr": (188, "p0"), "lsetxattr": (189, "p0"), "fsetxattr": (190, "f0"), "removexattr": (197, "p0"),
    "lremovexattr": (198, "p0"), "fremovexattr": (199, "f0"),
    "mount": (165, "p1"), "umount2": (166, "p0"), "move_mount": (429, "p3"), "fsmount": (432, ""), "mount_setattr": (442, ""),
    "pivot_root": (155, "p0"), "unshare": (272, ""), "clone": (56, ""), "clone3": (435, ""), "fork": (57, ""), "vfork": (58, ""),
    "execve": (59, "p0"), "sendto": (44, "f0"), "sendmsg": (46, "f0"), "connect": (42, "f0"), "kill": (62, ""),
    "read": (0, "f0"), "pread64": (17, "f0"), "readv": (19, "f0"), "getdents64": (217, "f0"),
}
NAMES = {number: name for name, (number, _) in CALLS.items()}
READS = {"read", "pread64", "readv", "getdents64"}
OPENS = {"open", "openat", "openat2"}
FICLONE = 0x40049409
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


class Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_void_p)]


def seccomp_filter(names):
    """SECCOMP_RET_TRACE for these calls of a 64-bit program, all else goes through."""
    numbers = sorted(CALLS[name][0] for name in names)
    op = lambda code, k, yes=0, no=0: struct.pack("HBBI", code, yes, no, k)
    code = [op(0x20, 4), op(0x15, 0xC000003E, 1, 0), op(0x06, 0x7FFF0000), op(0x20, 0)]
    code += [op(0x15, number, len(numbers) - i, 0) for i, number in enumerate(numbers)]
    code += [op(0x06, 0x7FFF0000), op(0x06, 0x7FF00000)]
    return b"".join(code), len(code)


def ptrace(request, pid, address=None, data=None):
    if LIBC.ptrace(request, pid, address, data) < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


class Late(Exception):
    """The command took too long."""


class Call:
    """A system call that is about to be made."""

    def __init__(self, tid, process, main, regs):
        self.tid, self.process, self.main, self.regs = tid, process, main, regs
        self.name = NAMES.get(regs[ORIG_RAX], "?")
        self.arguments = [regs[RDI], regs[RSI], regs[RDX], regs[R10]]

    def text(self, address):
        try:
            with open(f"/proc/{self.tid}/mem", "rb", buffering=0) as memory:
                memory.seek(address)
                return memory.read(4096 - address % 4096).split(b"\0")[0].decode(errors="replace")
        except (OSError, ValueError):
            return "?"

    def flags(self):
        """Of an open."""
        if self.name == "openat2":
            try:
                with open(f"/proc/{self.tid}/mem", "rb", buffering=0) as memory:
                    memory.seek(self.arguments[2])
                    return struct.unpack("Q", memory.read(8))[0]
            except (OSError, ValueError, struct.error):
                return 0
        return self.arguments[1 if self.name == "open" else 2]

    def descriptor(self):
        """What the descriptor of the call is open on: a path, `socket:[…]`, `pipe:[…]`."""
        how = CALLS[self.name][1]
        try:
            return os.readlink(f"/proc/{self.tid}/fd/{self.arguments[int(how[1])]}") if how.startswith("f") else ""
        except OSError:
            return "?"

    def target(self):
        how = CALLS[self.name][1]
        if not how:
            return ""
        return self.descriptor() if how[0] == "f" else self.text(self.arguments[int(how[1])])

    def mutates(self):
        if self.name in READS:
            return False
        if self.name in OPENS:
            return bool(self.flags() & WRITING)
        return self.name != "ioctl" or self.arguments[1] == FICLONE

    def __str__(self):
        return f"{self.name}({self.target()}) of {'kiln' if self.process == self.main else 'a child'}"


class Outcome:
    """How a traced command ended."""

    def __init__(self):
        self.code = None
        # What is still there when kiln has ended: those that had to be killed.
        self.left = []
        self.late = False
        self.events = 0


def child(argv, env, folder, ready, output, names):
    try:
        os.setsid()
        os.read(ready, 1)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.chdir(folder)
        os.closerange(3, 256)
        code, length = seccomp_filter(names)
        buffer = ctypes.create_string_buffer(code, len(code))
        program = Program(length, ctypes.cast(buffer, ctypes.c_void_p))
        LIBC.prctl.argtypes = [ctypes.c_int] + [ctypes.c_void_p] * 4
        if LIBC.prctl(22, 2, ctypes.addressof(program), None, None) != 0:
            os.write(2, b"no seccomp filter\n")
            os._exit(126)
        os.execvpe(argv[0], argv, env)
    except BaseException as error:  # noqa: this process must not go on as the harness
        os.write(2, f"{argv[0]}: {error}\n".encode())
    os._exit(127)


def run(argv, env, folder, output, program, decide, names, seconds=60):
    """Runs the command; asks `decide(Call)` before each call of these names that a process of `program` makes: None lets it go on,
    "kill" kills kiln, "self" the process that makes the call, a number is the error that it gets instead."""
    out = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    ready, go = os.pipe()
    main = os.fork()
    if main == 0:
        os.close(go)
        child(argv, env, folder, ready, out, names)
    os.close(out)
    os.close(ready)
    outcome = Outcome()
    alive, process_of, ours = {main}, {main: main}, set()
    inode = os.stat(program).st_ino

    def late(*_):
        raise Late

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        ptrace(SEIZE, main, None, OPTIONS)
        os.write(go, b"x")
        loop(main, alive, process_of, ours, inode, outcome, decide)
    except Late:
        outcome.late = outcome.code is None
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
        os.close(go)
    for tid in list(alive):
        try:
            with open(f"/proc/{tid}/cmdline", "rb") as file:
                outcome.left.append(file.read().replace(b"\0", b" ").decode(errors="replace") or str(tid))
            os.kill(tid, signal.SIGKILL)
        except OSError:
            pass
    while alive:
        try:
            tid, status = os.waitpid(-1, WALL)
        except ChildProcessError:
            break
        if os.WIFEXITED(status) or os.WIFSIGNALED(status):
            alive.discard(tid)
        else:
            resume(tid, 0)
    return outcome


def resume(tid, number, request=CONT):
    try:
        ptrace(request, tid, None, number)
    except OSError as error:
        if error.errno != errno.ESRCH:
            raise


def loop(main, alive, process_of, ours, inode, outcome, decide):
    regs = (ctypes.c_ulonglong * 27)()
    grace = False
    while alive:
        try:
            tid, status = os.waitpid(-1, WALL)
        except ChildProcessError:
            alive.clear()
            return
        if os.WIFEXITED(status) or os.WIFSIGNALED(status):
            alive.discard(tid)
            process_of.pop(tid, None)
            if tid == main:
                outcome.code = os.waitstatus_to_exitcode(status)
                if not grace:
                    # The kernel needs a moment to end a pid namespace.
                    grace = True
                    signal.alarm(5)
            continue
        if tid not in process_of:
            alive.add(tid)
            process_of[tid] = group(tid)
        event, number = status >> 16, os.WSTOPSIG(status)
        if event == EVENT_SECCOMP:
            if not answer(tid, process_of[tid], main, ours, regs, outcome, decide):
                continue
            number = 0
        elif event == EVENT_EXEC:
            process_of[tid] = tid
            try:
                same = os.stat(f"/proc/{tid}/exe").st_ino == inode
            except OSError:
                same = False
            (ours.add if same else ours.discard)(tid)
            number = 0
        elif event == EVENT_STOP:
            if number in (signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU):
                resume(tid, 0, LISTEN)
                continue
            number = 0
        elif event:
            message = ctypes.c_ulong()
            try:
                ptrace(GETEVENTMSG, tid, None, ctypes.addressof(message))
                fresh = message.value
                if fresh not in process_of:
                    alive.add(fresh)
                    process_of[fresh] = group(fresh)
                if process_of[tid] in ours:
                    ours.add(process_of[fresh])
            except OSError:
                pass
            number = 0
        resume(tid, number)


def group(tid):
    try:
        with open(f"/proc/{tid}/status") as file:
            return next(int(line.split()[1]) for line in file if line.startswith("Tgid"))
    except (OSError, StopIteration):
        return tid


def answer(tid, process, main, ours, regs, outcome, decide):
    """Asks what to do with a call; False when its thread isn't to be resumed."""
    if process not in ours:
        return True
    try:
        ptrace(GETREGS, tid, None, ctypes.addressof(regs))
    except OSError:
        return True
    call = Call(tid, process, main, regs)
    outcome.events += 1
    verdict = decide(call)
    if verdict is None:
        return True
    if verdict in ("kill", "self"):
        try:
            os.kill(main if verdict == "kill" else process, signal.SIGKILL)
        except ProcessLookupError:
            pass
        # A supervisor's call goes on, if it is given the time to.
        return True
    regs[ORIG_RAX] = 0xFFFFFFFFFFFFFFFF
    regs[RAX] = 0x10000000000000000 - verdict
    try:
        ptrace(SETREGS, tid, None, ctypes.addressof(regs))
    except OSError:
        pass
    return True


def now():
    return time.monotonic()
