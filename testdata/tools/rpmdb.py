#!/usr/bin/env python3
"""Databases of rpm in each of its formats, made by rpm, SQLite and Berkeley DB themselves.

usage: rpmdb.py DIR [COUNT]

Builds COUNT packages (default 30), installs them into a root of their own, and writes to DIR:
    rpmdb.sqlite            as rpm wrote it
    wal/rpmdb.sqlite{,-wal} the same, where half of the packages are only in the log
    Packages                the same headers in a hash of Berkeley DB (needs db5.3_load or db_load)
    Packages.db             the same headers in rpm's own format, which Debian's rpm can't write: laid out here as rpm's
                            lib/backend/ndb/rpmpkg.c does it
    packages.json           what `rpm -qa` says: [name, epoch or null, version-release, license, vendor]
"""
import json, os, shutil, sqlite3, struct, subprocess, sys

folder, count = os.path.abspath(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 30
work = os.path.join(folder, "work")
os.makedirs(work, exist_ok=True)

# Descriptions from nothing to more than a page, so that rows and values of every length are there.
spec = "Name: kiln\nVersion: 1\nRelease: 1\nSummary: s\nLicense: MIT\nBuildArch: noarch\n%description\nd\n"
for n in range(count):
    epoch = "" if n % 3 == 0 else f"Epoch: {n % 3}\n"
    spec += (f"%package -n kiln-test-{n}\nVersion: 1.{n}\nRelease: {n % 4}.fc40\n{epoch}Summary: package {n}\nVendor: Kiln Tests\n"
             f"License: {'MIT' if n % 2 else 'GPL-2.0-or-later AND MIT'}\nURL: https://p.test/{n}\n"
             f"%description -n kiln-test-{n}\n{'x' * (n * n * 20)}\n%files -n kiln-test-{n}\n")
with open(os.path.join(work, "kiln.spec"), "w") as f:
    f.write(spec)


def run(*command, **more):
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **more)
    if done.returncode:
        sys.exit(f"rpmdb.py: {' '.join(command)} failed:\n{done.stderr.decode()}")
    return done.stdout.decode()


run("rpmbuild", "-bb", "--quiet", "--define", f"_topdir {work}/top", os.path.join(work, "kiln.spec"))
packages = sorted(os.path.join(work, "top/RPMS/noarch", name) for name in os.listdir(os.path.join(work, "top/RPMS/noarch")))
root = ["rpm", "--root", os.path.join(work, "root"), "--dbpath", "/var/lib/rpm"]
run(*root, "--initdb")
run(*root, "-i", "--justdb", "--nodeps", "--nosignature", *packages)
query = "%{NAME}\t%{EPOCH}\t%{VERSION}-%{RELEASE}\t%{LICENSE}\t%{VENDOR}\n"
rows = [line.split("\t") for line in run(*root, "-qa", "--qf", query).splitlines()]
with open(os.path.join(folder, "packages.json"), "w") as f:
    json.dump(sorted([name, None if epoch == "(none)" else epoch, version, license, vendor] for name, epoch, version, license, vendor in rows), f)

made = os.path.join(work, "root/var/lib/rpm/rpmdb.sqlite")
db = sqlite3.connect(made)
db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
headers = list(db.execute("SELECT hnum, blob FROM Packages ORDER BY hnum"))
db.close()
shutil.copy(made, os.path.join(folder, "rpmdb.sqlite"))

# What is taken away is checkpointed, what is put back stays in the log: it is copied while the database is open.
os.makedirs(os.path.join(folder, "wal"), exist_ok=True)
half = headers[len(headers) // 2:]
db = sqlite3.connect(made)
db.execute("PRAGMA journal_mode=wal")
db.execute("PRAGMA wal_autocheckpoint=0")
db.executemany("DELETE FROM Packages WHERE hnum = ?", [(number,) for number, _ in half])
db.commit()
db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
db.executemany("INSERT INTO Packages VALUES (?, ?)", half)
db.commit()
for suffix in ("", "-wal"):
    shutil.copy(made + suffix, os.path.join(folder, "wal/rpmdb.sqlite" + suffix))
db.close()

load = shutil.which("db5.3_load") or shutil.which("db_load")
if load:
    text = "VERSION=3\nformat=bytevalue\ntype=hash\ndb_pagesize=4096\nHEADER=END\n"
    for number, blob in [(0, struct.pack("=I", len(headers)))] + headers:
        text += f" {struct.pack('=I', number).hex()}\n {blob.hex()}\n"
    run(load, os.path.join(folder, "Packages"), input=(text + "DATA=END\n").encode())

slots, blobs = b"", b""
start = 4096 * (1 + (len(headers) + 2) * 16 // 4096)
for index, (number, blob) in enumerate(headers, 1):
    head = struct.pack("<4sIII", b"BlbS", number, index, len(blob))
    tail = struct.pack("<III4s", 0, len(blob), number, b"BlbE")
    block = head + blob + b"\0" * (-(len(blob) + 16) % 16) + tail
    block += b"\0" * (-len(block) % 16)
    slots += struct.pack("<4sIII", b"Slot", number, (start + len(blobs)) // 16, len(block) // 16)
    blobs += block
table = struct.pack("<4sIIIIIII", b"RpmP", 0, 1, start // 4096, len(headers) + 1, 0, 0, 0) + slots
while len(table) < start:
    table += struct.pack("<4sIII", b"Slot", 0, 0, 0)
with open(os.path.join(folder, "Packages.db"), "wb") as f:
    f.write(table + blobs)
shutil.rmtree(work)
