//! Hides where a Go program keeps the list of modules it was built from (Go's `debug/buildinfo`): a section of its ELF file.

use super::language::Named;
use super::package::Package;

/// How the section begins.
const MAGIC: &[u8] = b"\xff Go buildinf:";
/// The strings stand in the section itself (since Go 1.18), behind a head of this length.
const INLINE: u8 = 2;
const HEAD: usize = 32;
/// Go puts the list between two marks of this length.
const MARK: usize = 16;
/// No list of modules is longer.
const MAX_SECTION: u64 = 16 << 20;
/// What a program has at the most.
const MAX_SECTIONS: usize = 512;

/// The list of modules of a program, if it is a Go program that has one. `read` gives as many bytes from a place on.
pub fn modules(read: &dyn Fn(u64, usize) -> Option<Vec<u8>>) -> Option<String> {
    let head = read(0, 64)?;
    // Elf64 and Elf32 differ in the width of addresses only.
    let wide = match head.get(..5)? {
        b"\x7fELF\x02" => true,
        b"\x7fELF\x01" => false,
        _ => return None,
    };
    let big = head[5] == 2;
    let (table, entry, count) = match wide {
        true => (number(&head, 0x28, 8, big)?, number(&head, 0x3a, 2, big)?, number(&head, 0x3c, 2, big)?),
        false => (number(&head, 0x20, 4, big)?, number(&head, 0x2e, 2, big)?, number(&head, 0x30, 2, big)?),
    };
    let (entry, count) = (usize::try_from(entry).ok()?, usize::try_from(count).ok()?);
    if entry < if wide { 64 } else { 40 } || count > MAX_SECTIONS {
        return None;
    }
    let sections = read(table, entry * count)?;
    for section in sections.chunks_exact(entry) {
        let (kind, offset, size) = match wide {
            true => (number(section, 4, 4, big)?, number(section, 24, 8, big)?, number(section, 32, 8, big)?),
            false => (number(section, 4, 4, big)?, number(section, 16, 4, big)?, number(section, 20, 4, big)?),
        };
        // SHT_PROGBITS; its name isn't worth another read.
        if kind != 1 || size < HEAD as u64 || read(offset, MAGIC.len())? != MAGIC {
            continue;
        }
        let bytes = read(offset, usize::try_from(size.min(MAX_SECTION)).ok()?)?;
        if bytes.get(15)? & INLINE == 0 {
            return None;
        }
        let (_, rest) = text(bytes.get(HEAD..)?)?;
        let (list, _) = text(rest)?;
        let list = list.get(MARK..list.len().checked_sub(MARK)?)?;
        return String::from_utf8(list.to_vec()).ok();
    }
    None
}

/// A length of seven bits a byte, the lowest first, and as many bytes.
fn text(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let mut length = 0_usize;
    for (index, byte) in bytes.iter().enumerate().take(5) {
        length |= usize::from(byte & 0x7f) << (7 * index);
        if byte & 0x80 == 0 {
            let rest = bytes.get(index + 1..)?;
            return Some((rest.get(..length)?, rest.get(length..)?));
        }
    }
    None
}

fn number(bytes: &[u8], at: usize, width: usize, big: bool) -> Option<u64> {
    let bytes = bytes.get(at..at + width)?;
    let add = |number: u64, byte: &u8| (number << 8) | u64::from(*byte);
    Some(if big { bytes.iter().fold(0, add) } else { bytes.iter().rev().fold(0, add) })
}

/// The modules of such a list: `mod` and `dep` lines, of which `=>` lines replace the one before.
pub fn packages(list: &str, found: &str) -> Vec<Package> {
    let mut modules: Vec<(&str, &str)> = Vec::new();
    for line in list.lines() {
        let mut fields = line.split('\t');
        let (key, path, version) = (fields.next(), fields.next(), fields.next());
        let (Some(path), Some(version)) = (path, version) else { continue };
        match key {
            Some("mod" | "dep") => modules.push((path, version)),
            Some("=>") => {
                modules.pop();
                modules.push((path, version));
            }
            _ => {}
        }
    }
    // What was built from a folder has no release.
    let named = modules.into_iter().filter(|(_, version)| !version.is_empty() && *version != "(devel)");
    let named = named.map(|(path, version)| Named { name: path.to_owned(), version: version.to_owned(), ..Named::default() });
    named.map(|named| named.package("golang", "go", found)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The smallest ELF file with one section.
    fn program(section: &[u8]) -> Vec<u8> {
        let mut file = vec![0; 64];
        file[..6].copy_from_slice(b"\x7fELF\x02\x01");
        file[0x28] = 64;
        file[0x3a] = 64;
        file[0x3c] = 1;
        let mut entry = vec![0; 64];
        entry[4] = 1;
        entry[24] = 128;
        entry[32..40].copy_from_slice(&(section.len() as u64).to_le_bytes());
        file.extend(entry);
        file.extend(section);
        file
    }

    fn found(file: &[u8]) -> Option<String> {
        modules(&|at, length| Some(file.get(usize::try_from(at).ok()?..)?.get(..length)?.to_vec()))
    }

    #[test]
    fn modules_of_a_program() {
        let list = "path\ta.test/c\nmod\ta.test/c\t(devel)\t\ndep\tgithub.com/a/b\tv1.2.3\th1:x=\ndep\tx.test/y\tv0.1.0\n=>\tz.test/y\tv0.2.0\th1:y=\nbuild\t-compiler=gc\n";
        let marked = format!("{}{list}{}", "m".repeat(16), "n".repeat(16));
        let mut section = MAGIC.to_vec();
        section.extend([8, INLINE]);
        section.resize(HEAD, 0);
        section.push(6);
        section.extend(b"go1.22");
        section.extend([(marked.len() & 0x7f) as u8 | 0x80, (marked.len() >> 7) as u8]);
        section.extend(marked.as_bytes());
        let file = program(&section);
        assert_eq!(found(&file).as_deref(), Some(list));
        let purls: Vec<String> = packages(list, "/c").into_iter().map(|package| package.purl).collect();
        assert_eq!(purls, ["pkg:golang/github.com/a/b@v1.2.3", "pkg:golang/z.test/y@v0.2.0"]);
        // However it is cut or changed, it is read to an end.
        for length in 0..file.len() {
            assert_eq!(found(&file[..length]), None);
        }
        for at in 0..file.len() {
            let mut other = file.clone();
            other[at] = 0xff;
            let _ = found(&other);
        }
    }
}
