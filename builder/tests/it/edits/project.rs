//! A Dockerfile, its flags and its files as a value, and random edits of it. Every instruction occurs.
//!
//! Lines name earlier stages as `{3}`: the third before, if there are so many, so that moving lines about seldom breaks a name.

use std::fmt::Write as _;

use super::files::Files;
use super::random::Random;

/// A stage: what it starts from, then lines.
#[derive(Debug, Clone)]
struct Stage {
    base: &'static str,
    lines: Vec<String>,
}

/// All that a build is given.
#[derive(Debug, Clone)]
pub(crate) struct Project {
    stages: Vec<Stage>,
    /// How the text looks, whatever it says.
    style: usize,
    flags: Vec<&'static str>,
    pub(crate) context: Files,
    /// The context that is called `named`.
    pub(crate) named: Files,
    /// What an address gives.
    pub(crate) served: Files,
}

const WORDS: [&str; 5] = ["one", "two", "three", "$A", "${E:-none}"];
const PATHS: [&str; 6] = ["/w/a", "/w/b", "/w/sub/c", "/c/a", "/c/src/b", "d"];

impl Project {
    pub(crate) fn new(random: &mut Random) -> Project {
        let stages = (0..1 + random.below(3)).map(|number| stage(random, number)).collect();
        let (context, named) = (Files::new(random), Files::new(random));
        let served = Files::one(random, "served.tar");
        Project { stages, style: 0, flags: Vec::new(), context, named, served }
    }

    /// Changes something and says what.
    pub(crate) fn edit(&mut self, random: &mut Random) -> String {
        loop {
            let done = match random.below(20) {
                0..=7 => self.context.edit(random),
                8 => self.named.edit(random).map(|what| format!("named: {what}")),
                9 => {
                    self.served = Files::one(random, "served.tar");
                    Some("another file at the address".to_owned())
                }
                10 => self.edit_stages(random),
                11 => {
                    self.style = random.below(8);
                    Some(format!("the text in style {}", self.style))
                }
                12 => {
                    self.flags = (0..random.below(3)).map(|_| random.of(&FLAGS)).collect();
                    Some(format!("flags {:?}", self.flags))
                }
                _ => self.edit_lines(random),
            };
            if let Some(done) = done {
                return done;
            }
        }
    }

    fn edit_stages(&mut self, random: &mut Random) -> Option<String> {
        let at = random.below(self.stages.len());
        match random.below(4) {
            0 if self.stages.len() < 5 => {
                let new = stage(random, at);
                self.stages.insert(at, new);
                Some(format!("a new stage {at}"))
            }
            1 if self.stages.len() > 1 => {
                self.stages.remove(at);
                Some(format!("no stage {at}"))
            }
            2 => {
                self.stages[at].base = base(random, at);
                Some(format!("stage {at} FROM {}", self.stages[at].base))
            }
            3 if self.stages.len() > 1 => {
                let other = random.below(self.stages.len());
                self.stages.swap(at, other);
                Some(format!("stages {at} and {other} swapped"))
            }
            _ => None,
        }
    }

    fn edit_lines(&mut self, random: &mut Random) -> Option<String> {
        let stage = random.below(self.stages.len());
        let lines = &mut self.stages[stage].lines;
        let at = random.below(lines.len() + 1);
        match random.below(6) {
            0 | 1 if lines.len() < 15 => {
                let line = instruction(random);
                lines.insert(at, line.clone());
                Some(format!("stage {stage}, line {at}: new {line:?}"))
            }
            2 if at < lines.len() => {
                lines[at] = instruction(random);
                Some(format!("stage {stage}, line {at}: now {:?}", lines[at]))
            }
            3 if at < lines.len() => Some(format!("stage {stage}, line {at}: no {:?}", lines.remove(at))),
            4 if at < lines.len() => {
                let other = random.below(lines.len());
                lines.swap(at, other);
                Some(format!("stage {stage}: lines {at} and {other} swapped"))
            }
            5 if at < lines.len() && lines.len() < 15 => {
                let line = lines[at].clone();
                lines.push(line);
                Some(format!("stage {stage}: line {at} again at the end"))
            }
            _ => None,
        }
    }

    /// The flags, with the place of the other context.
    pub(crate) fn flags(&self, named: &str) -> Vec<String> {
        let mut flags = vec![format!("--build-context=named={named}")];
        flags.extend(self.flags.iter().map(|flag| match flag.strip_prefix("--target=") {
            None => (*flag).to_owned(),
            Some(back) => {
                let last = self.stages.len() - 1;
                format!("--target=s{}", last.saturating_sub(back.parse().expect("a number")))
            }
        }));
        flags
    }

    /// The Dockerfile.
    pub(crate) fn text(&self, server: &str) -> String {
        let mut text = String::from("ARG BASE=busybox\n");
        let mut empty: Vec<bool> = Vec::new();
        for (number, stage) in self.stages.iter().enumerate() {
            let earlier = |back: usize| if number == 0 { None } else { Some(number - 1 - (back % number)) };
            let name = |text: &str| {
                let mut text = text.to_owned();
                for back in 0..4 {
                    let found = earlier(back).map_or_else(|| "busybox".to_owned(), |at| format!("s{at}"));
                    text = text.replace(&format!("{{{back}}}"), &found);
                }
                text.replace("{server}", server)
            };
            let base = name(stage.base);
            // Nothing can be run in the empty image and in folders.
            let bare = match base.strip_prefix('s').and_then(|at| at.parse::<usize>().ok()) {
                Some(at) => empty[at],
                None => base == "scratch" || base == "named",
            };
            empty.push(bare);
            let _ = writeln!(text, "FROM {base} AS s{number}");
            for line in stage.lines.iter().filter(|line| !(bare && line.contains("RUN"))) {
                self.styled(&mut text, &name(line));
            }
        }
        text
    }

    fn styled(&self, text: &mut String, line: &str) {
        if self.style & 1 != 0 {
            text.push_str("\n# a comment\n");
        }
        let (keyword, rest) = line.split_once(' ').expect("an instruction has arguments");
        let keyword = if self.style & 2 != 0 { keyword.to_ascii_lowercase() } else { keyword.to_owned() };
        let between = if self.style & 4 != 0 { " \\\n  " } else { " " };
        let _ = writeln!(text, "{keyword}{between}{rest}");
    }
}

fn base(random: &mut Random, number: usize) -> &'static str {
    match random.below(10) {
        0 => "scratch",
        1 => "named",
        2 => "${BASE}",
        3..=5 if number > 0 => "{0}",
        6 if number > 1 => "{1}",
        _ => "busybox",
    }
}

fn stage(random: &mut Random, number: usize) -> Stage {
    // Folders that most lines need.
    let mut lines: Vec<String> = ["WORKDIR /c/src", "WORKDIR /w/sub", "WORKDIR /w"].map(str::to_owned).into();
    lines.extend((0..2 + random.below(5)).map(|_| instruction(random)));
    Stage { base: base(random, number), lines }
}

/// What can be said beside the text.
const FLAGS: [&str; 11] = [
    "--build-arg=A=said",
    "--build-arg=A=other",
    "--build-arg=BASE=busybox:latest",
    "--build-arg=UNUSED=1",
    "--label=flag=1",
    "--target=0",
    "--target=1",
    "--target=2",
    "--add-host=somewhere:1.2.3.4",
    "--network=none",
    "--no-cache-filter=s0",
];

/// A line of all kinds. Commands see content, names, modes, owners and the environment, but neither times nor the machine.
fn instruction(random: &mut Random) -> String {
    match random.below(24) {
        0..=8 => run(random),
        9..=13 => copy(random),
        14 => add(random),
        15 => format!("ENV {}={}", random.of(&["E", "F"]), random.of(&WORDS)),
        16 => format!("ARG A={}", random.of(&["one", "two"])),
        17 => format!("WORKDIR {}", random.of(&["/w", "sub", "/w/sub/deep", "/"])),
        18 => format!("USER {}", random.of(&["0", "0:5", "1000", "daemon", "root"])),
        19 => format!("LABEL l{}={}", random.below(2), random.of(&WORDS)),
        20 => random
            .of(&["SHELL [\"/bin/sh\", \"-ec\"]", "SHELL [\"/bin/sh\", \"-c\"]", "VOLUME /w", "EXPOSE 80", "STOPSIGNAL 9"])
            .to_owned(),
        21 => format!("ONBUILD {}", if random.percent(50) { "RUN echo $A $E >> /log; true".to_owned() } else { copy(random) }),
        22 => {
            random.of(&["CMD [\"a\"]", "ENTRYPOINT a $A", "HEALTHCHECK CMD true", "MAINTAINER me", "HEALTHCHECK NONE"]).to_owned()
        }
        _ => format!("COPY <<E{0} {1}\nline $A {2}\nE{0}", random.below(2), random.of(&PATHS), random.below(3)),
    }
}

fn run(random: &mut Random) -> String {
    // What is below a folder: names, kinds, modes, owners, links, content.
    let look = |dir: &str| {
        format!(
            "cd {dir} && find . | sort | head -n 60 | while read -r f; do stat -c '%n %a %u:%g %F %N' \"$f\"; test ! -f \"$f\" || md5sum \"$f\"; done"
        )
    };
    let (path, word) = (random.of(&PATHS), random.of(&WORDS));
    let seen = format!("/o{}", random.below(3));
    match random.below(20) {
        0..=2 => format!("RUN ({}) > {seen} 2>&1; true", look(random.of(&["/c", "/w", "/c/src"]))),
        3 => format!("RUN env | grep -v HOSTNAME | sort > {seen}; true"),
        4 | 5 => format!("RUN mkdir -p $(dirname {path}); echo {word} > {path}; true"),
        6 => format!("RUN echo {word} >> /log; true"),
        7 => format!("RUN rm -rf {path}; true"),
        8 => format!("RUN mv {path} {}; true", random.of(&PATHS)),
        9 => format!("RUN ln -f {path} /hard 2>/dev/null; ln -sf {path} /soft; true"),
        10 => format!("RUN chmod {} {path}; chown {} {path}; true", random.of(&["600", "4755", "644"]), random.of(&["0", "7:8"])),
        // An edit in place that puts the time back (C96).
        11 | 12 => format!(
            "RUN for f in $(find /c /w -type f 2>/dev/null | sort); do echo {word} | cut -c1 | dd of=$f conv=notrunc bs=1 count=1 2>/dev/null; \
             touch -d @1500000001 $f; done; true"
        ),
        13 => format!("RUN rm -rf /c/src && mkdir -p /c/src && echo {word} > /c/src/b; true"),
        14 => format!(
            "RUN --mount=type=bind,target=/m{}{} ({}) > {seen} 2>&1; true",
            random.of(&["", ",source=src", ",source=/", ",rw"]),
            random.of(&["", "", ",from=named", ",from={0}"]),
            look("/m")
        ),
        15 => format!("RUN --mount=type=tmpfs,target=/t{} echo {word} | tee /t/x > {seen}; true", random.below(2)),
        16 => format!("RUN --mount=type=cache,target=/cache echo {word} >> /cache/log; echo {word} > {seen}"),
        17 => format!("RUN --mount=type=secret,id=s --network=none echo {word} > {seen}"),
        18 => format!("RUN <<E\necho {word} > {seen}\nmkdir -p /w/sub\nE"),
        _ => random
            .of(&["RUN true", "RUN test ! -e /c/src/lib/a", "RUN [\"touch\", \"/touched\"]", "RUN cd /c/src || exit 3"])
            .to_owned(),
    }
}

fn copy(random: &mut Random) -> String {
    let mut flags = String::new();
    for (likely, flag) in [
        (15, random.of(&["--chown=7 ", "--chown=7:8 ", "--chown=daemon "])),
        (15, random.of(&["--chmod=640 ", "--chmod=755 "])),
        (20, "--link "),
        (10, "--parents "),
        (15, random.of(&["--exclude=*.log ", "--exclude=**/a "])),
    ] {
        if random.percent(likely) {
            flags.push_str(flag);
        }
    }
    let dest = random.of(&["/c/", "/c/", "/w/", "./", "/c/src/", "/", "rel/x/"]);
    match random.below(10) {
        0 | 1 => format!(
            "COPY {flags}--from={{{}}} {} {dest}",
            random.below(3),
            random.of(&["/c", "/w", "/o*", "/etc/passwd", "/c/src/"])
        ),
        2 => format!("COPY {flags}--from=named {} {dest}", random.of(&[".", "src", "*.txt"])),
        _ => format!(
            "COPY {flags}{} {dest}",
            random.of(&[".", ".", "src", "src/", "*.txt f*", "s*/b", "src/lib doc", "f.txt", "[ad]*"])
        ),
    }
}

fn add(random: &mut Random) -> String {
    random
        .of(&[
            "ADD a.tar /t/",
            "ADD --unpack=false a.tar /t/",
            "ADD --chown=7 src a.tar /t/",
            "ADD http://{server}/served.tar /t/",
            "ADD --unpack http://{server}/served.tar /t/",
            "ADD --exclude=*.log . /c/",
            "ADD --chmod=600 *.txt /c/",
        ])
        .to_owned()
}
