//! Writes archives that no well-behaved program writes: each field of each header is the row's to say. Nothing of kiln's own writer.

/// One entry, or bytes between entries.
#[derive(Debug, Clone)]
pub(super) struct Item {
    name: Vec<u8>,
    kind: u8,
    link: Vec<u8>,
    mode: u64,
    owner: (u64, u64),
    mtime: i64,
    data: Vec<u8>,
    announced: Option<u64>,
    device: (u64, u64),
    pax: Vec<(Vec<u8>, Vec<u8>)>,
    /// Bytes that stand for all of this.
    raw: Option<Vec<u8>>,
}

pub(super) fn item(kind: u8, name: impl AsRef<[u8]>) -> Item {
    Item {
        name: name.as_ref().to_vec(),
        kind,
        link: Vec::new(),
        mode: 0o644,
        owner: (0, 0),
        mtime: 0,
        data: Vec::new(),
        announced: None,
        device: (0, 0),
        pax: Vec::new(),
        raw: None,
    }
}

/// A file that says `new`.
pub(super) fn file(name: impl AsRef<[u8]>) -> Item {
    item(b'0', name).data(b"new")
}

pub(super) fn empty(name: impl AsRef<[u8]>) -> Item {
    item(b'0', name)
}

/// A directory of mode 0711 and the time 77, so that it differs from any that is made up.
pub(super) fn dir(name: impl AsRef<[u8]>) -> Item {
    item(b'5', name).mode(0o711).at(77)
}

pub(super) fn symlink(name: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Item {
    Item { link: target.as_ref().to_vec(), ..item(b'2', name).mode(0o777) }
}

pub(super) fn link(name: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Item {
    Item { link: target.as_ref().to_vec(), ..item(b'1', name) }
}

pub(super) fn fifo(name: impl AsRef<[u8]>) -> Item {
    item(b'6', name)
}

pub(super) fn device(kind: u8, name: impl AsRef<[u8]>, numbers: (u64, u64)) -> Item {
    Item { device: numbers, ..item(kind, name) }
}

/// Bytes as they are.
pub(super) fn raw(bytes: impl Into<Vec<u8>>) -> Item {
    Item { raw: Some(bytes.into()), ..item(b'0', "") }
}

/// An extended header of its own, with this body.
pub(super) fn extended(kind: u8, body: impl AsRef<[u8]>) -> Item {
    item(kind, "././@Ext").data(body.as_ref())
}

/// The records of an extended header.
pub(super) fn records(records: &[(&str, &[u8])]) -> Vec<u8> {
    let mut body = Vec::new();
    for (key, value) in records {
        let rest = key.len() + value.len() + 3;
        let mut length = rest + 1;
        while length != rest + length.to_string().len() {
            length = rest + length.to_string().len();
        }
        body.extend_from_slice(format!("{length} {key}=").as_bytes());
        body.extend_from_slice(value);
        body.push(b'\n');
    }
    body
}

impl Item {
    pub(super) fn mode(mut self, mode: u64) -> Item {
        self.mode = mode;
        self
    }

    pub(super) fn owner(mut self, uid: u64, gid: u64) -> Item {
        self.owner = (uid, gid);
        self
    }

    pub(super) fn at(mut self, mtime: i64) -> Item {
        self.mtime = mtime;
        self
    }

    pub(super) fn data(mut self, data: impl AsRef<[u8]>) -> Item {
        self.data = data.as_ref().to_vec();
        self
    }

    pub(super) fn announced(mut self, size: u64) -> Item {
        self.announced = Some(size);
        self
    }

    pub(super) fn pax(mut self, key: &str, value: impl AsRef<[u8]>) -> Item {
        self.pax.push((key.into(), value.as_ref().to_vec()));
        self
    }

    pub(super) fn xattr(self, key: &str, value: impl AsRef<[u8]>) -> Item {
        self.pax(&format!("SCHILY.xattr.{key}"), value)
    }

    /// Changes the finished header, whose checksum is made right again.
    pub(super) fn patched(self, at: usize, bytes: &[u8]) -> Item {
        let mut made = self.bytes();
        made[at..at + bytes.len()].copy_from_slice(bytes);
        seal(&mut made[..512]);
        raw(made)
    }

    /// Header, extended header if it needs one, and content.
    pub(super) fn bytes(&self) -> Vec<u8> {
        if let Some(raw) = &self.raw {
            return raw.clone();
        }
        let mut pax = self.pax.clone();
        for (key, text) in [("path", &self.name), ("linkpath", &self.link)] {
            if text.len() > 100 {
                pax.push((key.into(), text.clone()));
            }
        }
        let mut out = Vec::new();
        if !pax.is_empty() {
            let pax: Vec<(&str, &[u8])> =
                pax.iter().map(|(k, v)| (std::str::from_utf8(k).expect("a key is text"), &v[..])).collect();
            out = item(b'x', "././@PaxHeader").data(records(&pax)).bytes();
        }
        let mut block = [0u8; 512];
        let mut put = |at: usize, bytes: &[u8]| block[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &self.name[..self.name.len().min(100)]);
        put(100, format!("{:07o}", self.mode).as_bytes());
        put(108, &number(8, self.owner.0 as i64));
        put(116, &number(8, self.owner.1 as i64));
        put(124, &number(12, self.announced.unwrap_or(self.data.len() as u64) as i64));
        put(136, &number(12, self.mtime));
        put(156, &[self.kind]);
        put(157, &self.link[..self.link.len().min(100)]);
        put(257, b"ustar\x0000");
        put(329, &number(8, self.device.0 as i64));
        put(337, &number(8, self.device.1 as i64));
        seal(&mut block);
        out.extend_from_slice(&block);
        out.extend_from_slice(&self.data);
        out.resize(out.len().next_multiple_of(512), 0);
        out
    }
}

/// Octal digits where they suffice, else the binary form.
fn number(width: usize, value: i64) -> Vec<u8> {
    if value >= 0 && format!("{value:o}").len() < width {
        return format!("{value:0digits$o}", digits = width - 1).into_bytes();
    }
    let mut bytes = vec![if value < 0 { 0xff } else { 0 }; width];
    let have = value.to_be_bytes();
    let kept = width.min(8);
    bytes[width - kept..].copy_from_slice(&have[8 - kept..]);
    bytes[0] |= 0x80;
    bytes
}

/// Puts the right checksum into a header block.
pub(super) fn seal(block: &mut [u8]) {
    block[148..156].fill(b' ');
    let sum: u64 = block[..512].iter().map(|b| u64::from(*b)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

/// The entries without the blocks that end an archive.
pub(super) fn open(items: &[Item]) -> Vec<u8> {
    items.iter().flat_map(Item::bytes).collect()
}

/// A whole archive.
pub(super) fn tar(items: &[Item]) -> Vec<u8> {
    let mut out = open(items);
    out.extend_from_slice(&[0; 1024]);
    out
}
