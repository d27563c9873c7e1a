//! A tree as lines of words, one a path, and the same tree as a shell in a sandbox sees it.

use std::collections::BTreeMap;

use crate::support::tar::Entry;

/// Tells what a RUN sees: path, mode, owner, time and size, in `/told`.
pub(super) const SCRIPT: &str = "cd /\n\
    b=/bin/busybox\n\
    $b find . -xdev \\( -path ./proc -o -path ./sys -o -path ./dev -o -path ./told -o -path ./etc/hosts \
    -o -path ./etc/hostname -o -path ./etc/resolv.conf \\) -prune -o -exec $b stat -c '%n|%f|%u:%g|%Y|%s' '{}' + > /told 2>/dev/null\n\
    true\n";

/// Lines of `kind mode owner @time` and what else the kind has: `=content` (`=#length` if long), `>target`, `major,minor`,
/// `%first` of a hard link, `x:key=value`. Blanks are `\x20`.
pub(super) fn tell(entries: &[Entry<'_>]) -> BTreeMap<String, String> {
    let mut told = BTreeMap::new();
    for entry in entries {
        let path = escape(&entry.path);
        if entry.kind == b'1' {
            let first = escape(&entry.link);
            let line = format!("{} %{first}", told.get(&first).map_or("?", String::as_str));
            told.insert(path, line);
            continue;
        }
        let kind = match entry.kind {
            b'0' => "f",
            b'2' => "l",
            b'3' => "c",
            b'4' => "b",
            b'5' => "d",
            b'6' => "p",
            _ => "?",
        };
        let mut line = format!("{kind} m{:o} o{}:{} @{}", entry.mode, entry.uid, entry.gid, entry.mtime);
        match kind {
            "f" if entry.data.len() > 60 => line += &format!(" =#{}", entry.data.len()),
            "f" => line += &format!(" ={}", escape(entry.data)),
            "l" => line += &format!(" >{}", escape(&entry.link)),
            "c" | "b" => line += &format!(" {},{}", entry.device.0, entry.device.1),
            _ => {}
        }
        for (key, value) in &entry.xattrs {
            line += &format!(" x:{}={}", escape(key), escape(value));
        }
        told.insert(path, line);
    }
    told.remove("told");
    told
}

fn escape(bytes: &[u8]) -> String {
    bytes.escape_ascii().to_string().replace(' ', "\\x20")
}

/// Whether `found` is `base` with the changes in `lines`, and nothing else.
pub(super) fn compare(base: &BTreeMap<String, String>, lines: &[String], found: &BTreeMap<String, String>) -> Result<(), String> {
    let mut expected: BTreeMap<&str, Option<&str>> = base.keys().map(|path| (&path[..], None)).collect();
    for line in lines {
        if let Some(gone) = line.strip_prefix('-').filter(|gone| !gone.contains(' ')) {
            expected.retain(|path, _| *path != gone && !path.strip_prefix(gone).is_some_and(|rest| rest.starts_with('/')));
            continue;
        }
        let (path, words) = line.split_once(' ').ok_or_else(|| format!("the row has a line of one word: {line:?}"))?;
        expected.insert(path, Some(words));
    }
    let mut wrong = Vec::new();
    for (path, line) in found {
        // The root's time is that of the RUN.
        let line = &line.replace(" x:user.kiln", " KILN'S-OWN:");
        match expected.get(&path[..]) {
            _ if path.is_empty() => {}
            None => wrong.push(format!("too much: {path} {line}")),
            Some(None) if base.get(path) != Some(line) => {
                wrong.push(format!("changed: {path} {line}\n    it was {}", base.get(path).map_or("", |l| l)));
            }
            Some(Some(words)) => {
                let have: Vec<&str> = line.split(' ').collect();
                if let Some(word) = words.split(' ').find(|word| !have.contains(word)) {
                    wrong.push(format!("not {word}: {path} {line}"));
                }
            }
            Some(None) => {}
        }
    }
    wrong.extend(expected.keys().filter(|path| !found.contains_key(**path)).map(|path| format!("missing: {path}")));
    if wrong.is_empty() { Ok(()) } else { Err(wrong.join("\n  ")) }
}

/// Whether what a RUN saw is what is in the archive.
pub(super) fn seen_by_run(entries: &[Entry<'_>], has_devices: bool) -> Result<(), String> {
    let told = entries.iter().find(|entry| entry.path == b"told").ok_or("RUN left nothing")?;
    let mut seen = BTreeMap::new();
    for line in told.data.split(|b| *b == b'\n').filter(|line| !line.is_empty()) {
        let Some(bar) = line.iter().position(|b| *b == b'|') else { continue };
        let (path, rest) = (line[..bar].strip_prefix(b"./").unwrap_or(&line[..bar]), &line[bar + 1..]);
        seen.insert(path.to_vec(), String::from_utf8_lossy(rest).into_owned());
    }
    let mut wrong = Vec::new();
    let mounted: [&[u8]; 8] = [b"", b"told", b"proc", b"sys", b"dev", b"etc/hosts", b"etc/hostname", b"etc/resolv.conf"];
    for entry in entries {
        let below = |folder: &&&[u8]| entry.path.strip_prefix(**folder).is_some_and(|rest| rest.starts_with(b"/"));
        // A path that a shell can't say, or that is longer than the kernel takes.
        let silent = entry.path.contains(&b'\n') || entry.path.contains(&b'|') || entry.path.len() > 3000;
        if silent || mounted.contains(&&entry.path[..]) || mounted[2..5].iter().any(|folder| below(&folder)) {
            continue;
        }
        let shown = escape(&entry.path);
        let Some(line) = seen.remove(&entry.path) else {
            wrong.push(format!("RUN does not see {shown}"));
            continue;
        };
        let words: Vec<&str> = line.split('|').collect();
        let mode = u32::from_str_radix(words[0], 16).map_err(|e| e.to_string())?;
        let kind = match mode >> 12 {
            8 => b'0',
            10 => b'2',
            2 => b'3',
            6 => b'4',
            4 => b'5',
            1 => b'6',
            _ => b'?',
        };
        let is_device = matches!(entry.kind, b'3' | b'4');
        let is_link = entry.kind == b'1';
        let (owner, time) = (format!("{}:{}", entry.uid, entry.gid), entry.mtime.to_string());
        let fits = (is_link || kind == entry.kind || (is_device && !has_devices))
            && (is_link || kind == b'2' || mode & 0o7777 == entry.mode)
            && (is_link || entry.uid >= 65_534 || entry.gid >= 65_534 || words[1] == owner)
            && (is_link || !(0..1 << 31).contains(&entry.mtime) || words[2] == time)
            && (entry.kind != b'0' || words[3] == entry.data.len().to_string());
        if !fits {
            wrong.push(format!("RUN sees {shown} {line}, the archive has {:o} {owner} {time} {}", entry.mode, entry.data.len()));
        }
    }
    // Where a link for a resolver leads to is there while the RUN is.
    let passing = |path: &[u8]| matches!(path, b"." | b"told") || path == b"run" || path.starts_with(b"run/");
    seen.retain(|path, _| path.len() <= 3000 && !passing(path));
    wrong.extend(seen.keys().map(|path| format!("only RUN sees {}", escape(path))));
    if wrong.is_empty() { Ok(()) } else { Err(wrong.join("\n  ")) }
}
