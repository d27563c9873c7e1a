//! Hides a cache in a folder with the OCI image layout (image-layout.md), one that BuildKit reads and writes as well.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use kiln_oci::descriptor::Descriptor;
use kiln_oci::digest::{Digest, Hasher};
use kiln_oci::manifest::Index;
use kiln_oci::media_type;
use kiln_registry_client::{Pushed, Repository};
use rustix::fs::{FlockOperation, flock};

use super::document::{self, Form};
use super::{Backend, BackendError, Document, MAX_DOCUMENT, Open, Subject};
use crate::error::Error;

const REF_NAME: &str = "org.opencontainers.image.ref.name";
const SCHEME: &str = "local:";

/// A cache in a folder.
#[derive(Debug, Clone)]
pub struct LocalPlace {
    /// `dest` or `src`.
    pub folder: PathBuf,
    /// `tag`: the name of the cache within the folder; `latest` when none is given.
    pub tag: String,
    /// `digest`: reads this manifest, whatever the tag stands for.
    pub digest: Option<Digest>,
    /// How it is written.
    pub form: Form,
    /// `reset`: what no tag speaks of any more is removed once the new cache is written.
    pub reset: bool,
}

/// The same, in use.
#[derive(Debug)]
pub(super) struct Local {
    place: LocalPlace,
    locator: String,
}

/// The folder that a locator names; enough of a place to fetch layers from.
pub(super) fn at(locator: &str) -> Option<LocalPlace> {
    let folder = PathBuf::from(locator.strip_prefix(SCHEME)?);
    Some(LocalPlace { folder, tag: "latest".to_owned(), digest: None, form: Form::default(), reset: false })
}

impl Local {
    pub(super) fn new(place: &LocalPlace) -> Self {
        let folder = std::path::absolute(&place.folder).unwrap_or_else(|_| place.folder.clone());
        let locator = format!("{SCHEME}{}", folder.display());
        Self { place: LocalPlace { folder, ..place.clone() }, locator }
    }

    fn blob(&self, digest: &Digest) -> PathBuf {
        self.blobs().join(digest.hex())
    }

    fn blobs(&self) -> PathBuf {
        self.place.folder.join("blobs/sha256")
    }

    fn index_path(&self) -> PathBuf {
        self.place.folder.join("index.json")
    }

    fn tag(&self, subject: Subject) -> String {
        match subject {
            Subject::Steps => self.place.tag.clone(),
            Subject::Mounts => format!("{}-mounts", self.place.tag),
        }
    }

    fn index(&self) -> Result<Option<Index>, Error> {
        let path = self.index_path();
        let Some(bytes) = read(&path, MAX_DOCUMENT)? else { return Ok(None) };
        let index = serde_json::from_slice(&bytes);
        index.map(Some).map_err(|error| self.invalid(format!("index.json: {error}")).into())
    }

    fn invalid(&self, reason: String) -> BackendError {
        BackendError::Invalid { place: self.place.folder.display().to_string(), reason }
    }

    fn lost(&self, digest: Digest) -> Error {
        BackendError::Lost { place: self.place.folder.display().to_string(), digest }.into()
    }

    /// A blob's bytes, which are what the digest says.
    fn document(&self, digest: &Digest) -> Result<Vec<u8>, Error> {
        let bytes = read(&self.blob(digest), MAX_DOCUMENT)?.ok_or_else(|| self.lost(*digest))?;
        match Digest::of(&bytes) == *digest {
            true => Ok(bytes),
            false => Err(self.invalid(format!("the blob {digest} has another digest")).into()),
        }
    }

    /// Writes a blob whose bytes `fill` gives; it appears whole and proved, or not at all.
    fn write_blob(
        &self,
        digest: &Digest,
        size: u64,
        fill: &mut dyn FnMut(&mut dyn Write) -> io::Result<()>,
    ) -> Result<(), Error> {
        let (path, folder) = (self.blob(digest), self.blobs());
        let fail = |cause| fault("write", &path, cause);
        fs::create_dir_all(&folder).map_err(fail)?;
        let mut draft = Hashing { file: self.draft(&folder)?, hasher: Hasher::new(), written: 0 };
        fill(&mut draft).map_err(fail)?;
        let found = draft.hasher.finish();
        if (found, draft.written) != (*digest, size) {
            let cause = format!("its source gave {found} of {} bytes instead of {size}", draft.written);
            return Err(fail(io::Error::new(io::ErrorKind::InvalidData, cause)));
        }
        draft.file.persist(&path).map_err(|error| fail(error.error))?;
        Ok(())
    }

    /// A file that is to be renamed, with the rights that any new file would have.
    fn draft(&self, folder: &Path) -> Result<tempfile::NamedTempFile, Error> {
        use std::os::unix::fs::PermissionsExt as _;
        let rights = fs::Permissions::from_mode(0o666);
        let draft = tempfile::Builder::new().prefix(DRAFT).permissions(rights).tempfile_in(folder);
        draft.map_err(|cause| fault("make a file in", folder, cause))
    }

    /// Writes the index with `change` made to it.
    fn change_index(&self, change: &dyn Fn(&mut Index)) -> Result<Index, Error> {
        let path = self.index_path();
        let _lock = lock(&self.place.folder.join("index.json.lock"))?;
        let mut index = self.index()?.unwrap_or_else(|| Index {
            schema_version: 2,
            media_type: Some(media_type::OCI_INDEX.to_owned()),
            manifests: Vec::new(),
            annotations: Default::default(),
            extra: Default::default(),
        });
        change(&mut index);
        let bytes = serde_json::to_vec(&index).map_err(Error::internal("write an index"))?;
        let fail = |cause| fault("write", &path, cause);
        let layout = self.place.folder.join("oci-layout");
        if !layout.exists() {
            fs::write(&layout, br#"{"imageLayoutVersion":"1.0.0"}"#).map_err(|cause| fault("write", &layout, cause))?;
        }
        let mut draft = self.draft(&self.place.folder)?;
        draft.write_all(&bytes).and_then(|()| draft.as_file().sync_data()).map_err(fail)?;
        draft.persist(&path).map_err(|error| fail(error.error))?;
        Ok(index)
    }

    /// Removes the blobs that no entry of the index leads to. An unreadable entry keeps everything.
    fn sweep(&self, index: &Index) -> Result<(), Error> {
        let mut kept: BTreeSet<Digest> = BTreeSet::new();
        let mut open: Vec<Descriptor> = index.manifests.clone();
        while let Some(descriptor) = open.pop() {
            if !kept.insert(descriptor.digest) {
                continue;
            }
            let of = descriptor.media_type.as_str();
            if media_type::is_index(of) || media_type::is_manifest(of) {
                let bytes = self.document(&descriptor.digest)?;
                open.extend(document::children(&bytes).map_err(|error| self.invalid(error.to_string()))?);
            }
        }
        let folder = self.blobs();
        let fail = |cause| fault("read", &folder, cause);
        for entry in fs::read_dir(&folder).map_err(fail)? {
            let entry = entry.map_err(fail)?;
            let name = entry.file_name();
            let digest = name.to_str().and_then(|hex| Digest::parse(&format!("sha256:{hex}")).ok());
            if digest.is_some_and(|digest| !kept.contains(&digest)) {
                fs::remove_file(entry.path()).map_err(|cause| fault("remove", &entry.path(), cause))?;
            }
        }
        Ok(())
    }
}

const DRAFT: &str = ".kiln-";

impl Backend for Local {
    fn locator(&self) -> &str {
        &self.locator
    }

    fn load(&self, subject: Subject) -> Result<Vec<Document>, Error> {
        let wanted = match (subject, self.place.digest) {
            (Subject::Steps, Some(digest)) => Some(digest),
            _ => {
                let tag = self.tag(subject);
                let entries = self.index()?.map(|index| index.manifests).unwrap_or_default();
                entries.iter().find(|m| m.annotations.get(REF_NAME) == Some(&tag)).map(|m| m.digest)
            }
        };
        let Some(digest) = wanted else { return Ok(Vec::new()) };
        let manifest = |descriptor: &Descriptor| self.document(&descriptor.digest);
        document::unwrap(&self.locator, subject, &self.document(&digest)?, &manifest, &manifest)
    }

    fn has(&self, layer: &Descriptor) -> Result<bool, Error> {
        let path = self.blob(&layer.digest);
        match fs::metadata(&path) {
            Ok(meta) => Ok(meta.is_file() && meta.len() == layer.size),
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(cause) => Err(fault("look at", &path, cause)),
        }
    }

    fn put_layer(
        &self,
        layer: &Descriptor,
        _sources: &[Repository],
        open: &Open<'_>,
        progress: &dyn Fn(u64),
    ) -> Result<Pushed, Error> {
        if self.has(layer)? {
            return Ok(Pushed::Existed);
        }
        self.write_blob(&layer.digest, layer.size, &mut |sink| copy(open(0)?, sink, layer.size.saturating_add(1), progress))?;
        Ok(Pushed::Uploaded)
    }

    fn fetch_layer(&self, layer: &Descriptor, sink: &mut dyn Write, progress: &dyn Fn(u64)) -> Result<(), Error> {
        if !self.has(layer)? {
            return Err(self.lost(layer.digest));
        }
        let path = self.blob(&layer.digest);
        let fail = |cause| fault("read", &path, cause);
        copy(Box::new(File::open(&path).map_err(fail)?), sink, layer.size, progress).map_err(fail)
    }

    fn proves(&self) -> bool {
        false
    }

    fn save(&self, subject: Subject, config: &[u8], layers: &[Descriptor]) -> Result<Descriptor, Error> {
        if let Some(reason) = self.place.form.contradiction() {
            let place = self.place.folder.display().to_string();
            return Err(BackendError::Setting { place, reason: reason.to_owned() }.into());
        }
        let inner = Descriptor::of(subject.media_type(), config);
        self.write_blob(&inner.digest, inner.size, &mut |sink| sink.write_all(config))?;
        let (media_type, bytes) = self.place.form.wrap(inner, layers)?;
        let written = Descriptor::of(media_type, &bytes);
        self.write_blob(&written.digest, written.size, &mut |sink| sink.write_all(&bytes))?;
        let mut entry = written.clone();
        entry.annotations.insert(REF_NAME.to_owned(), self.tag(subject));
        let index = self.change_index(&|index| {
            let name = entry.annotations.get(REF_NAME);
            index.manifests.retain(|m| m.annotations.get(REF_NAME) != name);
            index.manifests.push(entry.clone());
        })?;
        if self.place.reset {
            self.sweep(&index)?;
        }
        Ok(written)
    }
}

/// Copies at most `limit` bytes.
fn copy(source: Box<dyn Read + Send>, sink: &mut dyn Write, limit: u64, progress: &dyn Fn(u64)) -> io::Result<()> {
    let (mut source, mut done) = (source.take(limit), 0);
    let mut buffer = vec![0; 256 << 10];
    loop {
        let count = source.read(&mut buffer)?;
        if count == 0 {
            return Ok(());
        }
        sink.write_all(&buffer[..count])?;
        done += count as u64;
        progress(done);
    }
}

/// A draft that is hashed on its way.
struct Hashing {
    file: tempfile::NamedTempFile,
    hasher: Hasher,
    written: u64,
}

impl Write for Hashing {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let count = self.file.write(data)?;
        self.hasher.update(&data[..count]);
        self.written += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// Locks a file that BuildKit's clients lock as well; they remove it when they are done, so the lock counts only while the name
/// still leads to it.
fn lock(path: &Path) -> Result<File, Error> {
    let fail = |cause| fault("lock", path, cause);
    loop {
        let file = OpenOptions::new().create(true).truncate(false).write(true).open(path).map_err(fail)?;
        rustix::io::retry_on_intr(|| flock(&file, FlockOperation::LockExclusive)).map_err(|errno| fail(errno.into()))?;
        let held = file.metadata().map_err(fail)?;
        if fs::metadata(path).is_ok_and(|now| (now.dev(), now.ino()) == (held.dev(), held.ino())) {
            return Ok(file);
        }
    }
}

/// The whole of a file, which may be absent.
fn read(path: &Path, limit: u64) -> Result<Option<Vec<u8>>, Error> {
    let mut bytes = Vec::new();
    match File::open(path).and_then(|file| file.take(limit + 1).read_to_end(&mut bytes)) {
        Ok(_) if bytes.len() as u64 <= limit => Ok(Some(bytes)),
        Ok(_) => Err(fault("read", path, io::Error::from(io::ErrorKind::FileTooLarge))),
        Err(cause) if matches!(cause.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
        Err(cause) => Err(fault("read", path, cause)),
    }
}

fn fault(operation: &'static str, path: &Path, cause: io::Error) -> Error {
    BackendError::File { operation, path: path.to_owned(), cause }.into()
}
