//! Reads an image archive, a tar of an OCI layout or of `docker save`, as somebody who never saw kiln would.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use kiln_oci::digest::Digest;
use serde_json::Value;

use super::tar::{entries, find};

/// An image: its configuration and its layers, bottom first, as plain tars.
#[derive(Debug)]
pub(crate) struct Image {
    pub(crate) config: Value,
    pub(crate) config_bytes: Vec<u8>,
    pub(crate) layers: Vec<Vec<u8>>,
    /// The manifest of an OCI layout; nothing for `docker save`.
    pub(crate) manifest: Option<Value>,
}

impl Image {
    /// Reads the only image in the file. Every digest that names something on the way is checked.
    pub(crate) fn read(path: &Path) -> Result<Image, String> {
        let bytes = std::fs::read(path).map_err(|e| format!("{}: {e}", path.display()))?;
        Image::from_bytes(&bytes).map_err(|e| format!("{}: {e}", path.display()))
    }

    fn from_bytes(bytes: &[u8]) -> Result<Image, String> {
        let files = entries(bytes)?;
        let read = |name: &str| find(&files, name).ok_or_else(|| format!("the archive holds no {name}"));
        let blob = |descriptor: &Value| -> Result<&[u8], String> {
            let digest = descriptor["digest"].as_str().ok_or("a descriptor has no digest")?;
            let data = read(&format!("blobs/{}", digest.replace(':', "/")))?;
            if Digest::of(data).to_string() != digest {
                return Err(format!("the blob {digest} holds something else"));
            }
            if descriptor["size"].as_u64() != Some(data.len() as u64) {
                return Err(format!("the blob {digest} has another size than its descriptor says"));
            }
            Ok(data)
        };
        let json = |data: &[u8]| serde_json::from_slice::<Value>(data).map_err(|e| e.to_string());
        if let Some(index) = find(&files, "index.json") {
            let mut value = json(index)?;
            while let Some(list) = value["manifests"].as_array() {
                let [only] = &list[..] else { return Err(format!("{} manifests instead of one", list.len())) };
                value = json(blob(only)?)?;
            }
            let config_bytes = blob(&value["config"])?.to_vec();
            let layers = value["layers"].as_array().cloned().unwrap_or_default();
            let layers = layers.iter().map(|l| plain(blob(l)?)).collect::<Result<_, _>>()?;
            return Ok(Image { config: json(&config_bytes)?, config_bytes, layers, manifest: Some(value) });
        }
        let list = json(read("manifest.json")?)?;
        let config_bytes = read(list[0]["Config"].as_str().ok_or("manifest.json names no configuration")?)?.to_vec();
        let names = list[0]["Layers"].as_array().cloned().unwrap_or_default();
        let layers = names.iter().map(|n| plain(read(n.as_str().unwrap_or_default())?)).collect::<Result<_, _>>()?;
        Ok(Image { config: json(&config_bytes)?, config_bytes, layers, manifest: None })
    }
}

/// The layer without its compression, undone by the programs that everybody has.
fn plain(data: &[u8]) -> Result<Vec<u8>, String> {
    let program = match data {
        [0x1f, 0x8b, ..] => "gzip",
        [0x28, 0xb5, 0x2f, 0xfd, ..] => "zstd",
        _ => return Ok(data.to_vec()),
    };
    let mut child = Command::new(program)
        .arg("-dc")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|e| format!("{program}: {e}"))?;
    let mut stdin = child.stdin.take().expect("stdin is piped");
    std::thread::scope(|scope| {
        scope.spawn(move || stdin.write_all(data));
        let output = child.wait_with_output().map_err(|e| format!("{program}: {e}"))?;
        if output.status.success() { Ok(output.stdout) } else { Err(format!("{program} refuses a layer")) }
    })
}
