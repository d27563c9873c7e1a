//! Hides how a Java archive says what it is: a zip file with a manifest and the properties that Maven leaves.

use std::io::Read as _;

use flate2::read::DeflateDecoder;

use super::language::Named;
use super::package::Package;

/// The end of a zip file is looked for in this many bytes (APPNOTE.TXT 4.3.16: a comment of 64 KiB).
const TAIL: u64 = (64 << 10) + 22;
/// Larger lists of files aren't read.
const MAX_LIST: u64 = 64 << 20;
/// Manifests and properties are small.
const MAX_TEXT: u64 = 1 << 20;
const STORED: u16 = 0;
const DEFLATED: u16 = 8;

/// A file in an archive, as its list has it.
struct Entry {
    name: String,
    method: u16,
    packed: u64,
    offset: u64,
}

/// The packages in an archive of `size` bytes. `read` gives as many bytes from a place on.
pub fn packages(read: &dyn Fn(u64, usize) -> Option<Vec<u8>>, size: u64, found: &str) -> Vec<Package> {
    let entries = list(read, size).unwrap_or_default();
    let mut out = Vec::new();
    for entry in &entries {
        if entry.name.starts_with("META-INF/maven/") && entry.name.ends_with("/pom.properties") {
            let text = content(read, entry).unwrap_or_default();
            let value = |key: &str| {
                let line = text.lines().find_map(|line| line.trim().strip_prefix(key)?.trim_start().strip_prefix('='));
                line.unwrap_or_default().trim().to_owned()
            };
            let (group, artifact) = (value("groupId"), value("artifactId"));
            out.extend(named(&group, &artifact, value("version"), String::new(), found));
        }
    }
    let file = found.rsplit('/').next().unwrap_or(found);
    let stem = file.rsplit_once('.').map_or(file, |(stem, _)| stem);
    // Those of what was packed into it say nothing of the archive itself.
    if !out.iter().any(|package: &Package| stem.starts_with(&package.name))
        && let Some(entry) = entries.iter().find(|entry| entry.name == "META-INF/MANIFEST.MF")
    {
        let text = content(read, entry).unwrap_or_default();
        let main = text.split("\r\n\r\n").next().unwrap_or_default().split("\n\n").next().unwrap_or_default();
        let value = |key: &str| {
            let line = main.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
            line.unwrap_or_default().trim().to_owned()
        };
        let first = |keys: &[&str]| keys.iter().map(|key| value(key)).find(|value| !value.is_empty()).unwrap_or_default();
        let version = first(&["Implementation-Version", "Bundle-Version", "Specification-Version"]);
        // `commons-io-2.11.0.jar`
        let artifact = stem.strip_suffix(&version).map_or(stem, |rest| rest.trim_end_matches('-'));
        out.extend(named(&first(&["Implementation-Vendor-Id"]), artifact, version, value("Bundle-License"), found));
    }
    out
}

fn named(group: &str, artifact: &str, version: String, license: String, found: &str) -> Option<Package> {
    if artifact.is_empty() || version.is_empty() {
        return None;
    }
    // `${project.version}` of an archive that was never filtered.
    let plain = ![group, artifact, &version].iter().any(|text| text.contains(['$', '/']));
    let group = if group.is_empty() { artifact } else { group };
    let named = Named { name: format!("{group}/{artifact}"), version, license, ..Named::default() };
    plain.then(|| named.package("maven", "java", found)).map(|package| Package { name: artifact.to_owned(), ..package })
}

/// The list at the end of the file.
fn list(read: &dyn Fn(u64, usize) -> Option<Vec<u8>>, size: u64) -> Option<Vec<Entry>> {
    let from = size.saturating_sub(TAIL);
    let tail = read(from, usize::try_from(size - from).ok()?)?;
    let end = tail.windows(4).rposition(|bytes| bytes == b"PK\x05\x06")?;
    let (length, offset) = (u64::from(u32_at(&tail, end + 12)?), u64::from(u32_at(&tail, end + 16)?));
    if length > MAX_LIST.min(size) {
        return None;
    }
    let list = read(offset, usize::try_from(length).ok()?)?;
    let mut entries = Vec::new();
    let mut rest = list.as_slice();
    while rest.get(..4) == Some(b"PK\x01\x02") {
        let (name, extra, comment) = (u16_at(rest, 28)?, u16_at(rest, 30)?, u16_at(rest, 32)?);
        let text = rest.get(46..46 + usize::from(name))?;
        if text.starts_with(b"META-INF/") {
            entries.push(Entry {
                name: String::from_utf8_lossy(text).into_owned(),
                method: u16_at(rest, 10)?,
                packed: u64::from(u32_at(rest, 20)?),
                offset: u64::from(u32_at(rest, 42)?),
            });
        }
        rest = rest.get(46 + usize::from(name) + usize::from(extra) + usize::from(comment)..)?;
    }
    Some(entries)
}

/// A small file of the archive, as text.
fn content(read: &dyn Fn(u64, usize) -> Option<Vec<u8>>, entry: &Entry) -> Option<String> {
    let head = read(entry.offset, 30)?;
    if head.get(..4)? != b"PK\x03\x04" || entry.packed > MAX_TEXT {
        return None;
    }
    let start = entry.offset + 30 + u64::from(u16_at(&head, 26)?) + u64::from(u16_at(&head, 28)?);
    let packed = read(start, usize::try_from(entry.packed).ok()?)?;
    let bytes = match entry.method {
        STORED => packed,
        DEFLATED => {
            let mut bytes = Vec::new();
            DeflateDecoder::new(packed.as_slice()).take(MAX_TEXT).read_to_end(&mut bytes).ok()?;
            bytes
        }
        _ => return None,
    };
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(bytes.get(at..at.checked_add(2)?)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A zip file with stored entries only, as `zip -0` writes it.
    fn archive(files: &[(&str, &str)]) -> Vec<u8> {
        let (mut out, mut list) = (Vec::new(), Vec::new());
        for (name, text) in files {
            let offset = out.len() as u32;
            let sizes = [0, text.len() as u32, text.len() as u32].map(u32::to_le_bytes).concat();
            out.extend([b"PK\x03\x04".as_slice(), &[20, 0, 0, 0, 0, 0, 0, 0, 0, 0], &sizes].concat());
            out.extend([name.len() as u8, 0, 0, 0]);
            out.extend(name.bytes().chain(text.bytes()));
            list.extend([b"PK\x01\x02".as_slice(), &[20, 0, 20, 0, 0, 0, 0, 0, 0, 0, 0, 0], &sizes].concat());
            list.extend([name.len() as u8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
            list.extend(offset.to_le_bytes());
            list.extend(name.bytes());
        }
        let at = (out.len() as u32).to_le_bytes();
        let count = files.len() as u8;
        out.extend(&list);
        out.extend([b"PK\x05\x06".as_slice(), &[0, 0, 0, 0, count, 0, count, 0]].concat());
        out.extend([(list.len() as u32).to_le_bytes(), at].concat());
        out.extend([0, 0]);
        out
    }

    fn found(file: &[u8], path: &str) -> Vec<String> {
        let read = |at: u64, length: usize| Some(file.get(usize::try_from(at).ok()?..)?.get(..length)?.to_vec());
        packages(&read, file.len() as u64, path).into_iter().map(|package| package.purl).collect()
    }

    #[test]
    fn archives_say_what_they_are() {
        let pom = ("META-INF/maven/a.b/c/pom.properties", "#Created\nversion=1.2\ngroupId=a.b\nartifactId=c\n");
        let manifest = (
            "META-INF/MANIFEST.MF",
            "Manifest-Version: 1.0\r\nImplementation-Version: 3.1\r\nImplementation-Vendor-Id: x.y\r\n\r\nName: z\r\n",
        );
        type Row<'a> = (&'a [(&'a str, &'a str)], &'a str, &'a [&'a str]);
        let rows: [Row<'_>; 4] = [
            (&[pom], "/c-1.2.jar", &["pkg:maven/a.b/c@1.2"]),
            (&[manifest, ("x/Y.class", "")], "/lib/tool-3.1.jar", &["pkg:maven/x.y/tool@3.1"]),
            (&[manifest, pom], "/tool.jar", &["pkg:maven/a.b/c@1.2", "pkg:maven/x.y/tool@3.1"]),
            (&[("META-INF/MANIFEST.MF", "Manifest-Version: 1.0\n")], "/x.jar", &[]),
        ];
        for (files, path, expected) in rows {
            let file = archive(files);
            assert_eq!(found(&file, path), expected, "{path}");
            // However it is cut or changed, it is read to an end.
            for at in 0..file.len() {
                let mut other = file.clone();
                other[at] = 0xff;
                let _ = (found(&other, path), found(&file[..at], path));
            }
        }
    }
}
