"""The contexts that every builder is timed on. Each maker fills a folder; another seed gives work that no cache knows."""
import dataclasses, gzip, hashlib, os, random, shutil, tarfile, tempfile, typing

import lab

MB = 1 << 20


def words(seed, length):
    """Text of a few thousand words, as compressible as source code."""
    pick = random.Random(seed)
    some = ["".join(pick.choices("abcdefghijklmnopqrstuvwxyz", k=pick.randint(3, 10))) for _ in range(3000)]
    return " ".join(pick.choices(some, k=length // 4)).encode()[:length]


def dockerfile(folder, *lines):
    (folder / "Dockerfile").write_text("\n".join(lines) + "\n")


def steps(folder, seed, count=50):
    """Commands that do next to nothing: what a step costs."""
    dockerfile(folder, "FROM busybox", f"ENV ROUND={seed}", *(f"RUN echo {i} > /f{i}" for i in range(count)))


def tree(folder, seed, count, least=200, most=6000):
    """Small files, twenty a folder, as a tree of installed packages has."""
    pick, text = random.Random(seed), words(seed, 200_000)
    for part in range(max(1, count // 20)):
        place = folder / f"group{part // 40}" / f"part{part}"
        place.mkdir(parents=True)
        for number in range(min(20, count)):
            size, start = pick.randint(least, most), pick.randrange(len(text) - most)
            with open(f"{place}/file{number}.js", "wb") as file:
                file.write(text[start : start + size])


def small_files(folder, seed):
    tree(folder / "src", seed, 20_000)
    dockerfile(folder, "FROM busybox", "WORKDIR /app", "COPY src ./src", "RUN find src -type f | wc -l > /count")


def data(folder, seed, megabytes, noise=0.5):
    """Files of 10 MB, in each a megabyte of noise and one of text in turns, or noise alone."""
    folder.mkdir(parents=True, exist_ok=True)
    pick, text = random.Random(seed), words(seed, MB + 4096)
    for number in range(max(1, megabytes // 10)):
        with open(folder / f"data{number}.bin", "wb") as file:
            for part in range(min(10, megabytes)):
                start = pick.randrange(4096)
                file.write(pick.randbytes(MB) if part < 10 * noise else text[start : start + MB])


def big(folder, seed):
    data(folder / "src", seed, 800)
    dockerfile(folder, "FROM busybox", "COPY src /data")


def noise(folder, seed):
    data(folder / "src", seed, 400, noise=1)
    dockerfile(folder, "FROM busybox", "COPY src /data")


def stages(folder, seed):
    """Four stages of two seconds that need nothing of each other."""
    lines = [line for i in range(4) for line in (f"FROM busybox AS s{i}", f"RUN sleep 2; echo {seed} > /out{i}")]
    dockerfile(folder, *lines, "FROM busybox", *(f"COPY --from=s{i} /out{i} /" for i in range(4)))


def app(folder, seed):
    """A package installation, the shape of most images that are built. PACKAGES stands for a mirror on loopback."""
    (folder / "main.py").write_text(f"print({seed})\n")
    proxy = os.environ["KILN_BENCH_PACKAGES"]
    dockerfile(folder, "FROM debian:bookworm", f"ENV ROUND={seed}",
               f"RUN export http_proxy={proxy} && apt-get update && apt-get install -y --no-install-recommends python3 gcc libc6-dev",
               "WORKDIR /app", "COPY main.py .", "RUN python3 -m py_compile main.py", 'CMD ["python3", "main.py"]')


def unpack(folder, seed):
    """A base image of 800 MB that has to be fetched before its RUN."""
    dockerfile(folder, "FROM big", f"RUN echo {seed} > /round; ls /data | wc -l > /count")


def big_base(layers, megabytes, files=0):
    """A maker of an OCI layout of busybox with layers above it: some data, or files, in each."""

    def make(folder, seed):
        layout = folder / "layout"
        shutil.copytree(lab.base("busybox")[0], layout)
        blob = lambda digest: layout / "blobs" / digest.replace(":", "/")

        def put(content):
            digest = "sha256:" + hashlib.sha256(content).hexdigest()
            blob(digest).write_bytes(content)
            return {"digest": digest, "size": len(content)}

        index = lab.json.loads((layout / "index.json").read_text())
        manifest = lab.json.loads(blob(index["manifests"][0]["digest"]).read_text())
        config = lab.json.loads(blob(manifest["config"]["digest"]).read_text())
        for number in range(layers):
            with tempfile.TemporaryDirectory(dir=folder) as place, tempfile.TemporaryFile(dir=folder) as plain:
                to = folder.__class__(place)
                if files:
                    tree(to, (seed, number).__repr__(), files, 200, 1000)
                else:
                    data(to, (seed, number).__repr__(), megabytes)
                with tarfile.open(fileobj=plain, mode="w", format=tarfile.PAX_FORMAT) as tar:
                    tar.add(place, f"data/{number}" if layers > 1 else "data")
                plain.seek(0)
                content = plain.read()
            kind = "application/vnd.oci.image.layer.v1.tar+gzip"
            manifest["layers"].append(put(gzip.compress(content, 6, mtime=0)) | {"mediaType": kind})
            config["rootfs"]["diff_ids"].append("sha256:" + hashlib.sha256(content).hexdigest())
        manifest["config"] |= put(lab.json.dumps(config | {"history": []}).encode())
        index["manifests"][0] |= put(lab.json.dumps(manifest).encode())
        (layout / "index.json").write_text(lab.json.dumps(index))
        return layout

    return make


@dataclasses.dataclass
class Work:
    """`goals`: at least this ratio to BuildKit's time, for each form. `longest`: seconds that nobody can do without."""

    name: str
    make: typing.Callable
    base: str = "busybox"
    archive: str | None = None
    again: bool = False
    goals: dict = dataclasses.field(default_factory=dict)
    longest: float | None = None


WORKS = [
    Work("50 RUN steps", steps, again=True, goals={"cold": 12, "again": 15}),
    Work("20,000 small files", small_files, again=True, goals={"cold": 8, "again": 12}),
    Work("800 MB to a gzip archive", big, archive="gzip", goals={"cold": 5}),
    Work("800 MB to a zstd archive", big, archive="zstd", goals={"cold": 12}),
    Work("400 MB of noise to a gzip archive", noise, archive="gzip"),
    Work("base of 800 MB and a RUN", unpack, goals={"cold": 2.5}),
    Work("four stages of 2 s", stages, longest=2.0),
    Work("Debian and apt-get install", app, base="debian:bookworm", goals={"cold": 1 / 0.75}),
]
