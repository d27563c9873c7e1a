#!/usr/bin/env python3
"""A disk whose power can be cut: a file system in a file, mounted in a mount namespace that only this process and what is
started in it (nsenter -m) see, so that nothing stays mounted however this ends.

usage: power.py FILE FOLDER ext4|xfs MEGABYTES

Says its process id, then obeys one line of standard input after another and answers each with one line:
  mount OPTIONS   mounts FILE at FOLDER (`-`: no options) and lets the machine have started anew: it gets another boot id
  cut             the power fails: nothing more reaches the disk, and every further write is an error
  cut commit      the same just after another program's fsync, which brings the journal to the disk but nobody else's data
  umount          takes the file system away; who still uses it is waited for
"""

import ctypes
import errno
import fcntl
import json
import os
import struct
import subprocess
import sys
import tempfile
import time
import uuid

# EXT4_IOC_SHUTDOWN and XFS_IOC_GOINGDOWN are one number. The flag: the journal isn't flushed first.
SHUTDOWN, NO_LOG_FLUSH = 0x8004587D, 2
BOOT_ID = "/proc/sys/kernel/random/boot_id"
CLONE_NEWNS, MS_BIND, MS_REC, MS_PRIVATE = 0x20000, 0x1000, 0x4000, 1 << 18
libc = ctypes.CDLL(None, use_errno=True)


def check(result):
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def run(*args):
    done = subprocess.run(args, capture_output=True, text=True)
    if done.returncode != 0:
        raise OSError(f"{' '.join(args)}: {done.stderr.strip()}")


class Disk:
    def __init__(self, file, folder, kind, size):
        self.file, self.folder, self.kind = file, folder, kind
        self.root = self.other = None
        with open(file, "wb") as out:
            out.truncate(size << 20)
        os.makedirs(folder, exist_ok=True)
        self.owner = os.stat(folder)
        run("mkfs." + kind, "-q", *(["-F"] if kind == "ext4" else ["-f"]), file)
        check(libc.unshare(CLONE_NEWNS))
        check(libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None))
        self.boot = tempfile.NamedTemporaryFile("w+", prefix="kiln-boot-")
        self.boot.write(f"{uuid.uuid4()}\n")
        self.boot.flush()
        check(libc.mount(self.boot.name.encode(), BOOT_ID.encode(), None, MS_BIND, None))

    def mount(self, options):
        self.boot.seek(0)
        self.boot.write(f"{uuid.uuid4()}\n")
        self.boot.flush()
        # A sandbox that was killed may hold on to its copy of the mount for a moment, and then what is mounted is the dead disk.
        end = time.monotonic() + 20
        while not self.attach(options):
            if time.monotonic() > end:
                raise OSError("the disk is still in use without power")
            time.sleep(0.01)

    def attach(self, options):
        run("mount", "-o", ",".join(["loop"] + [options] * (options != "-")), self.file, self.folder)
        try:
            self.root = os.open(self.folder, os.O_RDONLY)
            os.fchown(self.root, self.owner.st_uid, self.owner.st_gid)
            self.other = os.open(os.path.join(self.folder, "another-program"), os.O_RDWR | os.O_CREAT, 0o600)
            os.fsync(self.other)
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            self.umount()
            return False
        return True

    def cut(self, commit):
        if commit:
            os.pwrite(self.other, struct.pack("d", time.time()), 0)
            os.fsync(self.other)
        fcntl.ioctl(self.root, SHUTDOWN, struct.pack("I", NO_LOG_FLUSH))

    def umount(self):
        for opened in (self.root, self.other):
            if opened is not None:
                os.close(opened)
        self.root = self.other = None
        end = time.monotonic() + 20
        while True:
            try:
                return run("umount", self.folder)
            except OSError:
                if time.monotonic() > end:
                    raise
                time.sleep(0.01)


def main():
    file, folder, kind, size = sys.argv[1:]
    try:
        disk = Disk(file, folder, kind, int(size))
        # Whether there are loop devices, and whether the file system knows the call.
        disk.mount("-")
        disk.cut(False)
        disk.umount()
    except OSError as error:
        sys.exit(str(error))
    print(json.dumps({"pid": str(os.getpid())}), flush=True)
    for line in sys.stdin:
        words = line.split()
        try:
            match words:
                case ["mount", options]:
                    disk.mount(options)
                case ["cut", *commit]:
                    disk.cut(commit == ["commit"])
                case ["umount"]:
                    disk.umount()
                case _:
                    raise OSError(f"what is {line!r}?")
            print("done", flush=True)
        except OSError as error:
            print(error, flush=True)


main()
