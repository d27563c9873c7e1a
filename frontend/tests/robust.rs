//! Broken files must be answered, never panicked over: thousands of small mutations of the golden Dockerfiles, the same
//! on every run.
#![allow(clippy::unwrap_used, reason = "a panic is a failure")]

mod support;

use std::fs;
use std::path::Path;

use kiln_frontend::ignore::{PatternMatcher, State};
use kiln_frontend::{Source, parse};
use support::Fixture;

/// xorshift64*: enough to pick places.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % limit.max(1)
    }
}

const PIECES: [&str; 40] = [
    "\\",
    "\n",
    "\\\n",
    "\"",
    "'",
    "`",
    "$",
    "${",
    "}",
    "${X:-",
    "${X#",
    "${X//",
    "/",
    "<<",
    "<<-EOF",
    "EOF\n",
    "[",
    "]",
    "[\"",
    "--",
    "--x=",
    "--from=0 ",
    "--mount=",
    "type=cache,target=/x ",
    "=",
    " ",
    "\t",
    "#",
    "# escape=`\n",
    "é",
    "\u{feff}",
    "\r\n",
    "FROM ",
    "FROM a AS b\n",
    "RUN ",
    "COPY ",
    "ENV ",
    "ONBUILD ",
    "ARG ",
    "\0",
];

fn mutate(random: &mut Random, text: &str) -> String {
    let mut chars: Vec<char> = text.chars().collect();
    for _ in 0..=random.below(4) {
        let at = random.below(chars.len() + 1);
        match random.below(3) {
            0 => {
                let piece = PIECES[random.below(PIECES.len())];
                chars.splice(at..at, piece.chars());
            }
            1 => {
                let end = (at + random.below(6)).min(chars.len());
                chars.drain(at..end);
            }
            _ => {
                let end = (at + random.below(30)).min(chars.len());
                let copy: Vec<char> = chars[at..end].to_vec();
                let to = random.below(chars.len() + 1);
                chars.splice(to..to, copy);
            }
        }
    }
    chars.into_iter().collect()
}

fn seeds() -> Vec<String> {
    let mut out = Vec::new();
    for kind in ["parser", "rejected"] {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata").join(kind);
        let mut folders: Vec<_> = fs::read_dir(root).unwrap().map(|e| e.unwrap().path()).collect();
        folders.sort();
        // A line of 64 KiB only slows this down.
        let texts = folders.iter().filter_map(|f| fs::read_to_string(f.join("Dockerfile")).ok());
        out.extend(texts.filter(|text| text.len() < 4096));
    }
    out
}

#[test]
fn dockerfiles() {
    let mut random = Random(0x6b69_6c6e);
    let seeds = seeds();
    let fixture = Fixture { build_args: vec![("A".into(), "1".into()), ("VERSION".into(), "1".into())], ..Fixture::default() };
    for _ in 0..20_000 {
        let seed = random.below(seeds.len());
        let text = mutate(&mut random, &seeds[seed]);
        let (source, parsed, result) = fixture.try_lower(&text);
        // Every place that is named exists and can be shown.
        let errors = result.as_ref().err().map(Vec::as_slice).unwrap_or_default();
        for diagnostic in parsed.diagnostics.iter().chain(errors) {
            assert!(!diagnostic.render(&source).is_empty());
            if let Some(span) = diagnostic.span {
                assert!(span.start <= span.end && span.end <= source.text().len(), "{span:?} in {text:?}");
                assert!(span.first_line >= 1 && span.first_line <= span.last_line, "{span:?} in {text:?}");
            }
        }
        if let Ok(build) = result {
            support::dump(&build);
            let layers = build.image.history.iter().filter(|h| !h.empty_layer).count();
            let mut chain = 0;
            let mut at = build.target;
            while let Some(id) = at {
                let op = &build.graph.vertices[id.0].op;
                chain += usize::from(!matches!(op, kiln_frontend::graph::Op::Image(_)));
                at = op.parent();
            }
            assert_eq!(layers, chain, "one entry for each layer: {text:?}");
        }
    }
}

#[test]
fn any_bytes() {
    let mut random = Random(0x7878);
    for _ in 0..5_000 {
        let len = random.below(200);
        let bytes: Vec<u8> = (0..len).map(|_| b"FROM RUN\\\n\"'$<<EOF[]{}#=- \t\r\xff\xc3\xa9"[random.below(31)]).collect();
        if let Ok(source) = Source::new("Dockerfile", bytes.clone()) {
            let _ = parse(&source);
        }
        if let Ok(matcher) = PatternMatcher::parse(&bytes) {
            for path in bytes.split(|b| *b == b'\n').filter(|p| !p.is_empty()) {
                let (_, state) = matcher.step(&State::default(), path);
                let _ = matcher.can_skip(path, &state);
            }
        }
    }
}
