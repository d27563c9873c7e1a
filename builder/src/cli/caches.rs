//! Hides how `--cache-from` and `--cache-to` are written (buildx `util/buildflags/cache.go`, BuildKit README "Cache").

mod places;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use kiln::export::form::{CompressionChoice, CompressionKind};
use kiln::remote_cache::backend::{Form, LocalPlace, Place, RegistryPlace};
use kiln::remote_cache::mounts::MountSelection;
use kiln::remote_cache::request::{CacheRequest, CacheScope, CacheSource, CacheTarget, MountExport, TargetPlace};
use kiln::remote_cache::seal::{SealError, SigningKey, VerifyingKeys};
use kiln_oci::digest::Digest;
use kiln_oci::reference::Reference;

use super::csv::csv_fields;
use super::environment::Environment;
use super::human::parse_size;
use super::report::Failure;

/// The build argument by which `docker build` asks for a cache in the image's configuration.
const INLINE: &str = "BUILDKIT_INLINE_CACHE";

/// A cache mount that takes more of the disk is left out unless `mounts-max=` says otherwise.
const LARGEST_MOUNT: u64 = 500 << 20;

/// What the flags and the build arguments ask for.
pub(super) fn parse(
    (from, to): (&[String], &[String]),
    build_args: &[(String, String)],
    environment: &Environment,
) -> Result<CacheRequest, Failure> {
    let mut request = CacheRequest::default();
    for spec in from {
        for fields in Fields::read("--cache-from", spec)? {
            request.from.push(source(fields, environment)?);
        }
    }
    for spec in to {
        for fields in Fields::read("--cache-to", spec)? {
            request.to.push(target(fields, environment)?);
        }
    }
    let asked = build_args.iter().rev().find(|(key, _)| key == INLINE);
    if asked.is_some_and(|(_, value)| matches!(value.as_str(), "1" | "true" | "TRUE" | "True" | "t" | "T"))
        && request.inline().is_none()
    {
        request.to.push(target(Fields::new("--cache-to", "type=inline"), environment)?);
    }
    if request.to.iter().filter(|target| matches!(target.place, TargetPlace::Inline)).count() > 1 {
        return Err(Failure::usage("--cache-to type=inline is given twice"));
    }
    Ok(request)
}

fn source(mut fields: Fields, environment: &Environment) -> Result<CacheSource, Failure> {
    let place = match fields.kind()?.as_str() {
        "registry" => Place::Registry(registry(&mut fields)?),
        "local" => {
            let digest = fields.take("digest").map(|text| Digest::parse(&text).map_err(|_| fields.invalid("digest", &text)));
            Place::Local(LocalPlace { digest: digest.transpose()?, ..local(&mut fields, "src")? })
        }
        "s3" => Place::S3(places::s3(&mut fields, environment)?),
        "gha" => Place::Gha(places::gha(&mut fields, environment)?),
        "inline" => return Err(fields.hint("an inline cache is read from its image", "write `--cache-from NAME`")),
        other => return Err(fields.unknown_type(other)),
    };
    let verify = fields.key("verify", VerifyingKeys::parse)?;
    let mounts = mounts(&mut fields)?;
    // buildx hands on what its users copied from `--cache-to`; it says nothing about how a cache is read.
    for key in ["mode", "compression", "compression-level", "force-compression", "ignore-error", "reset", "mounts-max"] {
        fields.take(key);
    }
    fields.end()?;
    Ok(CacheSource { place, verify, mounts })
}

fn target(mut fields: Fields, environment: &Environment) -> Result<CacheTarget, Failure> {
    let place = match fields.kind()?.as_str() {
        "inline" => TargetPlace::Inline,
        "registry" => TargetPlace::Apart(Place::Registry(registry(&mut fields)?)),
        "local" => {
            let reset = fields.flag("reset")?.unwrap_or(false);
            TargetPlace::Apart(Place::Local(LocalPlace { reset, ..local(&mut fields, "dest")? }))
        }
        "s3" => TargetPlace::Apart(Place::S3(places::s3(&mut fields, environment)?)),
        "gha" => TargetPlace::Apart(Place::Gha(places::gha(&mut fields, environment)?)),
        other => return Err(fields.unknown_type(other)),
    };
    let scope = match fields.take("mode").as_deref() {
        None | Some("min") => CacheScope::Min,
        Some("max") if matches!(place, TargetPlace::Inline) => {
            return Err(fields.hint("an image has no place for all steps", "use `mode=min`, or another type for `mode=max`"));
        }
        Some("max") => CacheScope::Max,
        Some(other) => return Err(fields.invalid("mode", other)),
    };
    let compression = compression(&mut fields)?;
    let must_succeed = !fields.flag("ignore-error")?.unwrap_or(true);
    let sign = fields.key("sign", SigningKey::parse)?;
    let largest = match fields.take("mounts-max") {
        Some(text) => parse_size(&text).ok_or_else(|| fields.invalid("mounts-max", &text))?,
        None => LARGEST_MOUNT,
    };
    let mounts = mounts(&mut fields)?.map(|selection| MountExport { selection, largest });
    if mounts.is_some() && matches!(place, TargetPlace::Inline) {
        return Err(fields.hint("an image has no place for cache mounts", "use another type for `mounts=`"));
    }
    fields.end()?;
    Ok(CacheTarget { place, scope, compression, must_succeed, sign, mounts })
}

/// `mounts=true`, or the ids of mounts; a comma between them has to stand in the quotes of CSV.
fn mounts(fields: &mut Fields) -> Result<Option<MountSelection>, Failure> {
    let Some(text) = fields.take("mounts") else { return Ok(None) };
    Ok(match text.to_ascii_lowercase().as_str() {
        "1" | "t" | "true" => Some(MountSelection::All),
        "0" | "f" | "false" => None,
        "" => return Err(fields.invalid("mounts", &text)),
        _ => Some(MountSelection::Named(text.split([',', ';']).filter(|id| !id.is_empty()).map(str::to_owned).collect())),
    })
}

fn registry(fields: &mut Fields) -> Result<RegistryPlace, Failure> {
    let Some(name) = fields.take("ref") else { return Err(fields.hint("it has no ref", "write `type=registry,ref=NAME`")) };
    let reference = Reference::parse(&name).map_err(|error| Failure::usage(format!("invalid cache `{name}`: {error}")))?;
    let insecure = fields.flag("registry.insecure")?.unwrap_or(false);
    Ok(RegistryPlace { reference, form: form(fields)?, insecure })
}

fn local(fields: &mut Fields, folder: &'static str) -> Result<LocalPlace, Failure> {
    let Some(path) = fields.take(folder) else {
        return Err(fields.hint(&format!("it has no {folder}"), &format!("write `type=local,{folder}=FOLDER`")));
    };
    let tag = fields.take("tag").filter(|tag| !tag.is_empty()).unwrap_or_else(|| "latest".to_owned());
    Ok(LocalPlace { folder: PathBuf::from(path), tag, digest: None, form: form(fields)?, reset: false })
}

fn form(fields: &mut Fields) -> Result<Form, Failure> {
    let oci_types = fields.flag("oci-mediatypes")?.unwrap_or(true);
    // An image manifest can't be written in Docker's words.
    let image_manifest = fields.flag("image-manifest")?.unwrap_or(oci_types);
    match image_manifest && !oci_types {
        true => Err(fields.hint("`image-manifest=true` needs `oci-mediatypes=true`", "leave one of them out")),
        false => Ok(Form { image_manifest, oci_types }),
    }
}

fn compression(fields: &mut Fields) -> Result<Option<CompressionChoice>, Failure> {
    let (kind, level) = (fields.take("compression"), fields.take("compression-level"));
    let force = fields.flag("force-compression")?.unwrap_or(false);
    if kind.is_none() && level.is_none() && !force {
        return Ok(None);
    }
    let kind = match kind {
        Some(name) => CompressionKind::parse(&name).ok_or_else(|| fields.invalid("compression", &name))?,
        None => CompressionKind::default(),
    };
    let level = level.map(|text| text.parse().map_err(|_| fields.invalid("compression-level", &text))).transpose()?;
    Ok(Some(CompressionChoice { kind, level, force }))
}

/// The text as errors may show it.
fn shown(spec: &str) -> String {
    const SECRET: [&str; 4] = ["secret_access_key", "session_token", "token", "ghtoken"];
    let mut shown = spec.to_owned();
    for field in csv_fields(spec) {
        if let Some((key, value)) = field.split_once('=')
            && SECRET.contains(&key.trim().to_lowercase().as_str())
            && !value.is_empty()
        {
            shown = shown.replace(value, "***");
        }
    }
    shown
}

/// The fields of one cache that are not understood yet.
struct Fields {
    flag: &'static str,
    spec: String,
    values: BTreeMap<String, String>,
}

impl Fields {
    fn new(flag: &'static str, spec: &str) -> Self {
        let pairs = csv_fields(spec);
        let pair = |field: &String| field.split_once('=').map(|(key, value)| (key.trim().to_lowercase(), value.to_owned()));
        Fields { flag, spec: shown(spec), values: pairs.iter().filter_map(pair).collect() }
    }

    /// The caches that a text names: one with a type, or names of caches in registries.
    fn read(flag: &'static str, spec: &str) -> Result<Vec<Self>, Failure> {
        let fields = csv_fields(spec);
        if fields.iter().all(|field| !field.contains('=') && !field.is_empty()) {
            let named = |name: &String| {
                let values = [("type", "registry"), ("ref", name)].map(|(key, value)| (key.to_owned(), value.to_owned()));
                Fields { flag, spec: shown(spec), values: values.into() }
            };
            return Ok(fields.iter().map(named).collect());
        }
        match fields.iter().find(|field| !field.contains('=')) {
            Some(field) => Err(Failure::usage(format!("invalid {flag} `{}`: `{field}` is no `KEY=VALUE`", shown(spec)))),
            None => Ok(vec![Self::new(flag, spec)]),
        }
    }

    fn kind(&mut self) -> Result<String, Failure> {
        self.take("type").ok_or_else(|| self.hint("it has no type", "write `type=registry,ref=NAME`"))
    }

    fn take(&mut self, key: &str) -> Option<String> {
        self.values.remove(key)
    }

    fn flag(&mut self, key: &str) -> Result<Option<bool>, Failure> {
        self.take(key)
            .map(|text| match text.to_ascii_lowercase().as_str() {
                "1" | "t" | "true" => Ok(true),
                "0" | "f" | "false" => Ok(false),
                _ => Err(self.invalid(key, &text)),
            })
            .transpose()
    }

    /// What `read` makes of the file that the field names.
    fn key<T>(&mut self, key: &str, read: fn(&[u8]) -> Result<T, SealError>) -> Result<Option<Arc<T>>, Failure> {
        let Some(path) = self.take(key) else { return Ok(None) };
        let unusable = |cause: &dyn std::fmt::Display| {
            Failure::usage_hint(
                format!("cannot use the key `{path}` of {} `{}`: {cause}", self.flag, self.spec),
                "`openssl genpkey -algorithm ed25519` makes a key that signs, `openssl pkey -pubout` the one that verifies",
            )
        };
        let file = std::fs::read(Path::new(&path)).map_err(|cause| unusable(&cause))?;
        read(&file).map(|key| Some(Arc::new(key))).map_err(|cause| unusable(&cause))
    }

    fn end(self) -> Result<(), Failure> {
        match self.values.keys().next() {
            Some(key) => Err(Failure::usage(format!("unknown key `{key}` in {} `{}`", self.flag, self.spec))),
            None => Ok(()),
        }
    }

    fn unknown_type(&self, kind: &str) -> Failure {
        self.hint(&format!("`{kind}` is no type of cache that kiln knows"), "types are registry, local, s3, gha and inline")
    }

    fn invalid(&self, key: &str, value: &str) -> Failure {
        Failure::usage(format!("invalid {key} `{value}` in {} `{}`", self.flag, self.spec))
    }

    fn hint(&self, what: &str, hint: &str) -> Failure {
        Failure::usage_hint(format!("invalid {} `{}`: {what}", self.flag, self.spec), hint)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(from: &[&str], to: &[&str], args: &[(&str, &str)]) -> Result<CacheRequest, String> {
        let own = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
        let args: Vec<_> = args.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        parse((&own(from), &own(to)), &args, &Environment::Given(Default::default())).map_err(|failure| failure.to_string())
    }

    #[test]
    fn caches_are_named_in_all_of_buildx_ways() {
        for (spec, expected) in [
            ("example.com/a:1", vec!["example.com/a:1"]),
            ("a,b:2", vec!["docker.io/library/a:latest", "docker.io/library/b:2"]),
            ("type=registry,ref=a", vec!["docker.io/library/a:latest"]),
            ("\"type=registry\",REF=a", vec!["docker.io/library/a:latest"]),
        ] {
            let found = parsed(&[spec], &[], &[]).unwrap().from;
            let names = found.iter().map(|source| match &source.place {
                Place::Registry(place) => place.reference.to_string(),
                other => panic!("{other:?}"),
            });
            assert_eq!(names.map(|name| Reference::parse(&name).unwrap()).collect::<Vec<_>>(), {
                expected.iter().map(|name| Reference::parse(name).unwrap()).collect::<Vec<_>>()
            });
        }
        let spec = "type=registry,ref=r:5/a,mode=max,image-manifest=false,oci-mediatypes=false,compression=zstd,\
                    compression-level=9,force-compression=true,ignore-error=false,registry.insecure=true";
        let request = parsed(&[], &[spec], &[]).unwrap();
        let target = &request.to[0];
        let TargetPlace::Apart(Place::Registry(place)) = &target.place else { panic!("{target:?}") };
        assert_eq!((place.form, place.insecure), (Form { image_manifest: false, oci_types: false }, true));
        assert_eq!((target.scope, target.must_succeed), (CacheScope::Max, true));
        let choice = CompressionChoice { kind: CompressionKind::Zstd, level: Some(9), force: true };
        assert_eq!(target.compression, Some(choice));
        let request = parsed(&["type=local,src=/a,tag=b"], &["type=local,dest=c,reset=true"], &[]).unwrap();
        let (Place::Local(from), TargetPlace::Apart(Place::Local(to))) = (&request.from[0].place, &request.to[0].place) else {
            panic!("{request:?}");
        };
        assert_eq!((from.folder.to_str(), from.tag.as_str()), (Some("/a"), "b"));
        assert_eq!((to.folder.to_str(), to.tag.as_str(), to.reset), (Some("c"), "latest", true));
        assert!(!request.to[0].must_succeed, "a build doesn't fail for its cache unless asked");
        let request = parsed(
            &["type=local,src=a,mounts=true", "type=local,src=a,mounts=false,mounts-max=1"],
            &["type=local,dest=a,\"mounts=x,/root/.cache\",mounts-max=1.5g", "type=local,dest=a,mounts=x;y"],
            &[],
        )
        .unwrap();
        let named = |ids: [&str; 2]| MountSelection::Named(ids.map(str::to_owned).to_vec());
        let to: Vec<_> = request.to.iter().map(|to| to.mounts.as_ref().map(|m| (m.selection.clone(), m.largest))).collect();
        assert_eq!(request.from.iter().map(|from| from.mounts.clone()).collect::<Vec<_>>(), [Some(MountSelection::All), None]);
        assert_eq!(to, [Some((named(["x", "/root/.cache"]), 1536 << 20)), Some((named(["x", "y"]), 500 << 20))]);
        for (args, to, inline) in [
            (("BUILDKIT_INLINE_CACHE", "1"), vec![], true),
            (("BUILDKIT_INLINE_CACHE", "0"), vec![], false),
            (("BUILDKIT_INLINE_CACHE", "1"), vec!["type=inline"], true),
            (("A", "1"), vec!["type=inline,mode=min"], true),
        ] {
            let request = parsed(&[], &to, &[args]).unwrap();
            assert_eq!((request.inline().is_some(), request.to.len()), (inline, usize::from(inline)), "{args:?} {to:?}");
        }
    }

    #[test]
    fn what_can_not_be_meant_is_refused() {
        for (spec, from, to) in [
            ("", "no `KEY=VALUE`", "no `KEY=VALUE`"),
            ("ref=a", "no type", "no type"),
            ("type=registry", "no ref", "no ref"),
            ("type=registry,ref=A", "invalid cache `A`", "invalid cache `A`"),
            ("type=registry,ref=a,b", "`b` is no `KEY=VALUE`", "`b` is no `KEY=VALUE`"),
            ("type=registry,ref=a,colour=red", "unknown key `colour`", "unknown key `colour`"),
            ("type=ftp", "`ftp` is no type", "`ftp` is no type"),
            ("type=local", "no src", "no dest"),
            ("type=local,src=a,digest=b", "invalid digest `b`", "no dest"),
            ("type=registry,ref=a,image-manifest=maybe", "invalid image-manifest", "invalid image-manifest"),
            ("type=registry,ref=a,image-manifest=true,oci-mediatypes=false", "needs `oci-med", "needs `oci-med"),
            ("type=registry,ref=a,verify=/none", "cannot use the key `/none`", "unknown key `verify`"),
            ("type=s3", "no bucket", "no bucket"),
            (
                "type=s3,bucket=b,region=r,access_key_id=i,secret_access_key=hush,x=hush",
                "access_key=***,x=***",
                "unknown key `x`",
            ),
            ("type=gha,url_v2=http://h,token=t,colour=red", "unknown key `colour`", "unknown key `colour`"),
            ("type=registry,ref=a,sign=/none", "unknown key `sign`", "cannot use the key `/none`"),
        ] {
            for (found, expected) in [(parsed(&[spec], &[], &[]), from), (parsed(&[], &[spec], &[]), to)] {
                let error = found.expect_err(spec);
                assert!(error.contains(expected), "{spec}: {error}");
            }
        }
        for (spec, expected) in [
            ("type=inline,mode=max", "no place for all steps"),
            ("type=inline,mounts=true", "no place for cache mounts"),
            ("type=local,dest=a,mounts=", "invalid mounts ``"),
            ("type=local,dest=a,mounts-max=much", "invalid mounts-max `much`"),
            ("type=registry,ref=a,mode=most", "invalid mode `most`"),
            ("type=registry,ref=a,compression=xz", "invalid compression `xz`"),
        ] {
            let error = parsed(&[], &[spec], &[]).expect_err(spec);
            assert!(error.contains(expected), "{spec}: {error}");
        }
        assert!(parsed(&["type=inline"], &[], &[]).is_err());
        assert!(parsed(&[], &["type=inline", "type=inline"], &[]).is_err());
    }
}
