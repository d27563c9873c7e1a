"""How kiln's cost grows with the work: what ten times as much takes must be ten times as much at most."""
import dataclasses, pathlib, subprocess, sys, time, typing

import gauge, sides, works
from works import dockerfile

FILES = (1000, 10_000, 100_000, 1_000_000)
# A unit may cost this many times what it costs in the cheapest part of the series, before it is called worse than linear.
TOLERANCE = 1.5
# Smaller differences than this are the machine's.
NOISE = 0.08


def run_steps(folder, seed, count):
    works.steps(folder, seed, count)


def copy_steps(folder, seed, count):
    for number in range(count):
        (folder / f"f{number}").write_text(f"{seed} {number}")
    dockerfile(folder, "FROM busybox", *(f"COPY f{number} /data/" for number in range(count)))


def settings(folder, seed, count):
    dockerfile(folder, "FROM busybox", *(f"ENV V{number}={seed}" for number in range(count)), "RUN true")


def stages(folder, seed, count):
    lines = [line for i in range(count) for line in (f"FROM busybox AS s{i}", f"RUN echo {seed} > /out{i}")]
    dockerfile(folder, *lines, "FROM busybox", *(f"COPY --from=s{i} /out{i} /" for i in range(count)))


def files(folder, seed, count):
    works.tree(folder / "src", seed, count, 50, 500)
    dockerfile(folder, "FROM busybox", "COPY src /src")


def one_folder(folder, seed, count):
    (folder / "src").mkdir()
    for number in range(count):
        (folder / "src" / f"file{number}").write_text(f"{seed}")
    dockerfile(folder, "FROM busybox", "COPY src /src")


def megabytes(folder, seed, count):
    works.data(folder / "parts", seed, 10)
    part = (folder / "parts" / "data0.bin").read_bytes()
    with open(folder / "src", "wb") as file:
        for _ in range(count // 10):
            file.write(part)
    dockerfile(folder, "FROM busybox", "COPY src /src")


def after_files(*lines):
    """What comes after a tree of files is there: only that is timed."""

    def make(folder, seed, count):
        files(folder, seed, count)
        said = (folder / "Dockerfile").read_text()
        (folder / "Dockerfile.next").write_text(said + "\n".join(lines) + "\n")

    return make


def layers(folder, seed, count):
    dockerfile(folder, f"FROM layers{count}", f"RUN echo {seed}")


@dataclasses.dataclass
class Series:
    """`forms`: cold, again (nothing changed), gzip (to an archive, all steps cached). `base`: makes an image to build on."""

    name: str
    unit: str
    sizes: tuple
    make: typing.Callable
    forms: tuple = ("cold",)
    base: typing.Callable | None = None


SERIES = [
    Series("RUN steps", "step", (10, 100, 1000), run_steps, ("cold", "again")),
    Series("COPY steps", "step", (10, 100, 1000), copy_steps, ("cold", "again")),
    Series("ENV steps", "step", (10, 100, 1000), settings, ("cold", "again")),
    Series("stages", "stage", (1, 10, 50, 200), stages, ("cold", "again")),
    Series("layers of a base", "layer", (1, 10, 127), layers, base=lambda count: works.big_base(count, 0, files=100)),
    Series("files of a COPY", "file", FILES, files, ("cold", "again", "gzip")),
    Series("files in one folder", "file", FILES[:3], one_folder, ("cold", "again", "gzip")),
    Series("MB of one file", "MB", (10, 100, 1000), megabytes, ("cold", "again", "gzip")),
    Series("RUN beside files", "file", FILES[:3], after_files("RUN true")),
    Series("RUN that changes files", "file", FILES[:3], after_files("RUN chmod -R 700 /src")),
    Series("RUN that writes files", "file", FILES[:3], after_files("RUN cp -a /src /copy")),
    Series("RUN that removes files", "file", FILES[:3], after_files("RUN find /src -type f -exec rm {} +")),
    Series("COPY --from of files", "file", FILES[:3], after_files("FROM busybox", "COPY --from=0 /src /src")),
]


def measure(kiln, series, form, context):
    """Seconds of one command, those of the processors, and the peak of its memory."""
    further = context / "Dockerfile.next"
    before = gauge.processor()
    with gauge.Watch(kiln.pids, kiln.programs, 0.02) as watch:
        if form == "gzip":
            seconds = gauge.timed(kiln.archive, context, "gzip", f"{context}.tar")
        elif further.exists():
            seconds = gauge.timed(kiln.build, context, "-f", str(further))
        else:
            seconds = gauge.timed(kiln.build, context)
    return seconds, gauge.processor() - before, watch.peak


def one_round(o, mirror, series, count, seed, seen):
    """Adds what each form took to `seen`. A disk for each, so that none bears what others left; two inodes for a file, with room."""
    with gauge.fresh_disk(24, 8192) as disk:
        kiln = sides.Kiln(disk, mirror, o.kiln)
        context = pathlib.Path(disk, "context")
        context.mkdir()
        dockerfile(context, "FROM busybox", "RUN true")
        kiln.build(context)
        series.make(context, seed, count)
        if (context / "Dockerfile.next").exists():
            kiln.build(context)
        time.sleep(2.5)  # a file younger than two seconds is read again, for its times prove nothing yet
        for form in series.forms:
            seen[form].append(measure(kiln, series, form, context))


def points(o, mirror, series, sizes):
    """For each form, a list of (count, least seconds, least seconds of the processors, most memory); and why it ends early, if so."""
    found = {form: [] for form in series.forms}
    for count in sizes:
        seen = {form: [] for form in series.forms}
        try:
            for number in range(o.rounds):
                one_round(o, mirror, series, count, number, seen)
        except subprocess.CalledProcessError as error:
            return found, f"{count:,}: {sides.reason(error)}"
        for form, all in seen.items():
            seconds, processor, peak = zip(*all)
            found[form].append((count, min(seconds), min(processor), max(peak)))
            print(f"{series.name}, {form}: {count}: {min(seconds):.3f} s, processor {min(processor):.3f} s, {max(peak) >> 20} MB",
                  file=sys.stderr, flush=True)
    return found, None


def marginal(points, which):
    """What a unit more costs in each part of the series; whether that rises."""
    parts = [(n - m, to[which] - of[which]) for of, to in zip(points, points[1:]) for m, n in [(of[0], to[0])]]
    clear = [more / units for units, more in parts if more > NOISE]
    return [max(0.0, more) / units for units, more in parts], len(clear) > 1 and clear[-1] > TOLERANCE * min(clear)


def verdict(points):
    """What a unit more costs in each part; whether it rises in waiting and in working, for one alone is what others do on the machine."""
    more, slower = marginal(points, 1)
    return more, slower and marginal(points, 2)[1]


def amount(count):
    return f"{count:,}"


def cost(seconds):
    return f"{seconds * 1e6:.1f} µs" if seconds < 1e-3 else f"{seconds * 1e3:.2f} ms"


def table(o, mirror, put):
    """Lines of a table in Markdown, and the names of what is worse than linear."""
    lines = ["| what | form | how many | seconds | processor | one | one more | peak memory | |", "|---|---|--:|--:|--:|--:|--:|--:|---|"]
    bad = []
    for series in SERIES:
        if o.only not in series.name:
            continue
        sizes = [count for count in series.sizes if count <= o.most]
        if series.base:
            for count in sizes:
                put(f"layers{count}", series.base(count))
        found, failure = points(o, mirror, series, sizes)
        if failure:
            bad.append(f"{series.name} fails at {failure}")
        for form, all in found.items():
            more, worse = verdict(all)
            for at, (count, seconds, processor, peak) in enumerate(all):
                last = worse and at == len(all) - 1
                lines.append(f"| {series.name if at == 0 else ''} | {form if at == 0 else ''} | {amount(count)} | {seconds:.3f} | {processor:.3f} "
                             f"| {cost(seconds / count)} | {cost(more[at - 1]) if at else ''} | {peak / gauge.MB:.0f} MB | {'**worse than linear**' if last else ''} |")
            if worse:
                bad.append(f"{series.name}, {form}")
    return lines, bad
