//! Hides the languages of `--attest`, `--provenance` and `--sbom` (buildx `util/buildflags/attests.go`).

use clap::Args;

use kiln::attest::{AttestationRequest, Detail, ProvenanceRequest, SlsaVersion};

use super::csv::csv_fields;
use super::environment::Environment;
use super::report::Failure;

/// What is to be said about the image beside it.
#[derive(Debug, Clone, Args, Default)]
pub(crate) struct AttestArgs {
    /// Attestation parameters (format: `type=sbom`, `type=provenance[,mode=min|max]`)
    #[arg(long, value_name = "SPEC")]
    pub(crate) attest: Vec<String>,
    /// Say how the image was built: shorthand for `--attest=type=provenance` (format: `true`, `mode=min|max[,builder-id=ID]`)
    #[arg(long, value_name = "SPEC", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub(crate) provenance: Option<String>,
    /// Say which packages the image holds: shorthand for `--attest=type=sbom`
    #[arg(long, value_name = "SPEC", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub(crate) sbom: Option<String>,
}

/// What the flags ask for.
///
/// `BUILDX_NO_DEFAULT_ATTESTATIONS` needs no reader: there are none by default.
pub(crate) fn request(args: &AttestArgs, environment: &Environment) -> Result<AttestationRequest, Failure> {
    let mut request = AttestationRequest { told: told(environment)?, ..AttestationRequest::default() };
    let shorthand = |kind: &str, value: &Option<String>| value.as_ref().map(|value| expanded(kind, value));
    let specs = args.attest.iter().cloned();
    let mut seen = Vec::new();
    for spec in specs.chain(shorthand("provenance", &args.provenance)).chain(shorthand("sbom", &args.sbom)) {
        let fields = fields(&spec)?;
        let kind = fields.iter().find(|(key, _)| key == "type").map(|(_, value)| value.clone());
        let kind = kind.ok_or_else(|| Failure::usage(format!("invalid --attest `{spec}`: it has no type")))?;
        if seen.contains(&kind) {
            return Err(Failure::usage(format!("there is more than one attestation of the type `{kind}`")));
        }
        let disabled = fields.iter().rfind(|(key, _)| key == "disabled").map(|(_, value)| boolean("disabled", value));
        let disabled = disabled.transpose()?.unwrap_or(false);
        let rest: Vec<_> = fields.iter().filter(|(key, _)| !matches!(key.as_str(), "type" | "disabled")).collect();
        match kind.as_str() {
            "provenance" => request.provenance = Some(provenance(&rest)?).filter(|_| !disabled),
            "sbom" => request.sbom = sbom(&rest)? && !disabled,
            other => {
                return Err(Failure::usage(format!("unknown attestation `{other}`: it is one of provenance, sbom")));
            }
        }
        seen.push(kind);
    }
    Ok(request)
}

/// `--provenance=false` as `type=provenance,disabled=true`.
fn expanded(kind: &str, value: &str) -> String {
    match truth(value) {
        Some(true) => format!("type={kind}"),
        Some(false) => format!("type={kind},disabled=true"),
        None => format!("type={kind},{value}"),
    }
}

fn fields(spec: &str) -> Result<Vec<(String, String)>, Failure> {
    let pairs = csv_fields(spec).into_iter().map(|field| {
        let (key, value) = field.split_once('=').ok_or_else(|| {
            Failure::usage_hint(
                format!("invalid attestation `{spec}`: `{field}` is no key=value pair"),
                "write for instance `--provenance=mode=max` or `--attest type=sbom`",
            )
        })?;
        Ok((key.trim().to_lowercase(), value.to_owned()))
    });
    pairs.collect()
}

fn provenance(fields: &[&(String, String)]) -> Result<ProvenanceRequest, Failure> {
    let mut wanted = ProvenanceRequest::default();
    for (key, value) in fields {
        let value = value.as_str();
        match (key.as_str(), value) {
            ("mode", "min") => wanted.detail = Detail::Min,
            // The first is what the second was called once.
            ("mode", "full" | "max") => wanted.detail = Detail::Max,
            ("mode", _) => return Err(unknown(key, value, "min, max")),
            ("version", "v1") => wanted.version = SlsaVersion::V1,
            ("version", "v0.2") => wanted.version = SlsaVersion::V02,
            ("version", _) => return Err(unknown(key, value, "v1, v0.2")),
            ("builder-id", id) => id.clone_into(&mut wanted.builder_id),
            ("reproducible", _) => wanted.reproducible = boolean(key, value)?,
            ("filename", name) => {
                if name.is_empty() || name.contains('/') || name == ".." || name == "." {
                    return Err(Failure::usage(format!("invalid filename `{name}` of the provenance: it is the name of a file")));
                }
                name.clone_into(&mut wanted.filename);
            }
            // Whether BuildKit also attaches it to a cache: kiln never does.
            ("inline-only", _) => drop(boolean(key, value)?),
            // Samples of memory and processor time are no inputs of a build.
            ("capture-usage", _) if !boolean(key, value)? => {}
            (other, _) => {
                let known = "mode, version, builder-id, reproducible, filename";
                return Err(Failure::usage(format!("unsupported key `{other}` of a provenance: it is one of {known}")));
            }
        }
    }
    Ok(wanted)
}

fn sbom(fields: &[&(String, String)]) -> Result<bool, Failure> {
    match fields.first() {
        None => Ok(true),
        Some((key, image)) if key == "generator" => Err(Failure::usage_hint(
            format!("the scanner `{image}` can't be run: kiln reads the package databases of an image itself"),
            "use `--sbom=true`, or run a scanner on the image that was built, for instance `syft oci-archive:FILE`",
        )),
        Some((key, _)) => Err(Failure::usage(format!("unsupported key `{key}` of an SBOM: kiln's own scanner has no settings"))),
    }
}

fn told(environment: &Environment) -> Result<Option<Detail>, Failure> {
    const NAME: &str = "BUILDX_METADATA_PROVENANCE";
    match environment.text(NAME).as_deref() {
        None | Some("disabled" | "false" | "0") => Ok(None),
        Some("min" | "true" | "1") => Ok(Some(Detail::Min)),
        Some("max") => Ok(Some(Detail::Max)),
        Some(other) => Err(Failure::usage(format!("invalid {NAME} `{other}`: it is one of min, max, disabled"))),
    }
}

fn unknown(key: &str, value: &str, known: &str) -> Failure {
    Failure::usage(format!("unknown {key} `{value}` of a provenance: it is one of {known}"))
}

fn boolean(key: &str, value: &str) -> Result<bool, Failure> {
    truth(value).ok_or_else(|| Failure::usage(format!("`{key}={value}` of an attestation is neither true nor false")))
}

/// What Go's `strconv.ParseBool` reads.
fn truth(value: &str) -> Option<bool> {
    match value {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    fn ask(attest: &[&str], provenance: Option<&str>, sbom: Option<&str>) -> Result<AttestationRequest, String> {
        let args = AttestArgs {
            attest: attest.iter().map(|spec| (*spec).to_owned()).collect(),
            provenance: provenance.map(str::to_owned),
            sbom: sbom.map(str::to_owned),
        };
        let environment = Environment::Given(HashMap::from([("BUILDX_NO_DEFAULT_ATTESTATIONS".to_owned(), "1".to_owned())]));
        request(&args, &environment).map_err(|failure| format!("{failure:?}"))
    }

    #[test]
    fn what_is_asked_for() {
        let max = ProvenanceRequest::default();
        let min = ProvenanceRequest { detail: Detail::Min, ..max.clone() };
        let rows: [(&[&str], Option<&str>, Option<&str>, Option<&ProvenanceRequest>, bool); 10] = [
            (&[], None, None, None, false),
            (&[], Some("true"), Some("true"), Some(&max), true),
            (&[], Some("false"), Some("0"), None, false),
            (&[], Some("mode=min"), None, Some(&min), false),
            (&[], Some("mode=max,disabled=true"), None, None, false),
            (&["type=provenance,mode=min", "type=sbom"], None, None, Some(&min), true),
            (&["type=sbom,disabled=true"], None, None, None, false),
            (&["type=provenance,mode=full"], None, None, Some(&max), false),
            (&["\"type=provenance\",capture-usage=false"], None, None, Some(&max), false),
            (&["type=provenance,inline-only=true"], None, None, Some(&max), false),
        ];
        for (attest, provenance, sbom, expected, packages) in rows {
            let asked = ask(attest, provenance, sbom).unwrap();
            assert_eq!((asked.provenance.as_ref(), asked.sbom), (expected, packages), "{attest:?} {provenance:?} {sbom:?}");
        }
        let all = ask(&[], Some("mode=min,builder-id=https://ci.test/1,version=v0.2,reproducible=true,filename=p.json"), None);
        let expected = ProvenanceRequest {
            detail: Detail::Min,
            version: SlsaVersion::V02,
            builder_id: "https://ci.test/1".to_owned(),
            reproducible: true,
            filename: "p.json".to_owned(),
        };
        assert_eq!(all.unwrap().provenance, Some(expected));
    }

    #[test]
    fn what_is_refused() {
        let rows: [(&[&str], Option<&str>, Option<&str>, &str); 11] = [
            (&["mode=min"], None, None, "it has no type"),
            (&["type=cve"], None, None, "unknown attestation `cve`"),
            (&["type=sbom"], None, Some("true"), "more than one attestation of the type `sbom`"),
            (&[], Some("mode=some"), None, "unknown mode `some`"),
            (&[], Some("version=2"), None, "unknown version `2`"),
            (&[], Some("maximal"), None, "`maximal` is no key=value pair"),
            (&[], Some("filename=../x"), None, "invalid filename"),
            (&[], Some("reproducible=perhaps"), None, "neither true nor false"),
            (&[], Some("colour=blue"), None, "unsupported key `colour`"),
            (&[], None, Some("generator=docker/scout-sbom-indexer"), "reads the package databases of an image itself"),
            (&[], None, Some("scan=deep"), "unsupported key `scan`"),
        ];
        for (attest, provenance, sbom, expected) in rows {
            let said = ask(attest, provenance, sbom).unwrap_err();
            assert!(said.contains(expected), "{said}");
        }
    }
}
