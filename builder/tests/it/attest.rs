//! What is said of an image beside it: how it was built, and what is in it; read by the programs of others.

mod provenance;
mod readers;
mod rpm;
mod sbom;

use std::ffi::OsStr;
use std::path::Path;

use serde_json::Value;

use crate::support::home::Home;

/// The documents of an OCI archive.
struct Layout {
    folder: tempfile::TempDir,
}

impl Layout {
    fn of(archive: &Path) -> Layout {
        let folder = crate::support::lab::temp_dir();
        let done = std::process::Command::new("tar").arg("-xf").arg(archive).arg("-C").arg(folder.path()).status();
        assert!(done.unwrap().success());
        Layout { folder }
    }

    fn bytes(&self, digest: &Value) -> Vec<u8> {
        let hex = digest.as_str().unwrap().trim_start_matches("sha256:").to_owned();
        std::fs::read(self.folder.path().join("blobs/sha256").join(hex)).unwrap()
    }

    fn json(&self, digest: &Value) -> Value {
        serde_json::from_slice(&self.bytes(digest)).unwrap()
    }

    /// The index that has the image and what is attached to it.
    fn index(&self) -> Value {
        let layout: Value = serde_json::from_slice(&std::fs::read(self.folder.path().join("index.json")).unwrap()).unwrap();
        self.json(&layout["manifests"][0]["digest"])
    }

    /// The attestation manifests.
    fn attached(&self) -> Vec<Value> {
        let index = self.index();
        let entries = index["manifests"].as_array().unwrap().iter();
        let entries = entries.filter(|entry| entry["annotations"]["vnd.docker.reference.type"] == "attestation-manifest");
        entries.map(|entry| self.json(&entry["digest"])).collect()
    }

    /// The statements of one type, one a platform.
    fn statements(&self, kind: &str) -> Vec<Value> {
        let mut out = Vec::new();
        for manifest in self.attached() {
            for layer in manifest["layers"].as_array().unwrap() {
                if layer["annotations"]["in-toto.io/predicate-type"] == kind {
                    out.push(self.json(&layer["digest"]));
                }
            }
        }
        out
    }
}

/// Builds a context into an archive.
fn build(home: &Home, context: &Path, flags: &[&str]) -> Layout {
    let archive = home.path("made.tar");
    let output = format!("type=oci,dest={}", archive.display());
    let mut args: Vec<&OsStr> = vec![OsStr::new("build"), OsStr::new("-o"), OsStr::new(&output)];
    args.extend(flags.iter().map(OsStr::new));
    args.push(context.as_os_str());
    home.run(args).ok();
    Layout::of(&archive)
}
