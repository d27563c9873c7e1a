//! Hides where Docker and podman listen, as their own clients find it: variables, docker's contexts, the usual sockets.

use std::path::{Path, PathBuf};

use kiln::export::daemon::Daemons;
use kiln_oci::digest::Digest;
use kiln_registry_client::{DaemonAddress, DaemonTls};
use serde::Deserialize;

use super::environment::Environment;
use super::report::Failure;

/// docker's `config.json`, as far as it names a context.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Config {
    current_context: String,
}

/// A context's `meta.json`.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct Meta {
    endpoints: Endpoints,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Endpoints {
    docker: Endpoint,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Endpoint {
    #[serde(rename = "Host")]
    host: String,
    #[serde(rename = "SkipTLSVerify")]
    skip_tls_verify: bool,
}

/// Which daemon gets an image; `context` is the one that the output names.
pub(crate) fn daemons(environment: &Environment, context: Option<&str>) -> Result<Daemons, Failure> {
    match context.filter(|name| *name != "default") {
        Some(name) => return named_context(environment, name, format!("the context `{name}`")),
        None if context.is_some() => {}
        None => {
            // As with docker, the address weighs more than the context.
            if let (None, Some(name)) = (environment.text("DOCKER_HOST"), environment.text("DOCKER_CONTEXT"))
                && name != "default"
            {
                return named_context(environment, &name, format!("DOCKER_CONTEXT (`{name}`)"));
            }
        }
    }
    for name in ["DOCKER_HOST", "CONTAINER_HOST"] {
        if let Some(text) = environment.text(name) {
            let address = DaemonAddress::parse(&text).map_err(|why| Failure::usage(format!("{name}: {why}")))?;
            return Ok(Daemons::Named(with_certificates(address, environment), name.to_owned()));
        }
    }
    let usual = usual(environment);
    match context {
        Some(name) => match usual.into_iter().next() {
            Some(first) => Ok(Daemons::Named(first, format!("the context `{name}`"))),
            None => Ok(Daemons::Any(Vec::new())),
        },
        None => {
            let chosen = current_context(environment).and_then(|name| context_address(environment, &name).ok());
            Ok(Daemons::Any(chosen.into_iter().chain(usual).collect()))
        }
    }
}

/// Docker's own socket, then those of one user's Docker and podman, then that of root's podman.
fn usual(environment: &Environment) -> Vec<DaemonAddress> {
    let runtime = environment.raw("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|path| path.is_absolute());
    let own = |name: &str| runtime.as_ref().map(|folder| folder.join(name));
    let places = [
        Some("/var/run/docker.sock".into()),
        own("docker.sock"),
        own("podman/podman.sock"),
        Some("/run/podman/podman.sock".into()),
    ];
    let mut found: Vec<DaemonAddress> = Vec::new();
    found.extend(places.into_iter().flatten().map(DaemonAddress::Socket));
    found
}

/// An address of the environment, with TLS where `DOCKER_TLS_VERIFY` asks for it.
fn with_certificates(address: DaemonAddress, environment: &Environment) -> DaemonAddress {
    match address {
        DaemonAddress::Host { authority, .. } if environment.raw("DOCKER_TLS_VERIFY").is_some() => {
            let own = || environment.docker_config().and_then(|file| Some(file.parent()?.to_owned()));
            let folder = environment.raw("DOCKER_CERT_PATH").map(PathBuf::from).or_else(own);
            let tls = folder.map_or_else(DaemonTls::default, |folder| certificates(&folder));
            DaemonAddress::Host { authority, tls: Some(tls) }
        }
        address => address,
    }
}

/// The certificates in a folder, by the names that docker gives them.
fn certificates(folder: &Path) -> DaemonTls {
    let there = |name: &str| Some(folder.join(name)).filter(|path| path.exists());
    DaemonTls { ca_file: there("ca.pem"), client_certificate: there("cert.pem").zip(there("key.pem")), skip_verify: false }
}

fn current_context(environment: &Environment) -> Option<String> {
    let text = std::fs::read(environment.docker_config()?).ok()?;
    let name = serde_json::from_slice::<Config>(&text).ok()?.current_context;
    Some(name).filter(|name| !name.is_empty() && name != "default")
}

fn named_context(environment: &Environment, name: &str, by: String) -> Result<Daemons, Failure> {
    let address = context_address(environment, name)
        .map_err(|why| Failure::usage_hint(why, "`docker context ls` lists those that there are"))?;
    Ok(Daemons::Named(address, by))
}

/// Where the daemon of a context listens. The folders' names are digests of the contexts' (docker/cli, `cli/context/store`).
fn context_address(environment: &Environment, name: &str) -> Result<DaemonAddress, String> {
    let config = environment.docker_config().ok_or("docker's settings have no place: $HOME is not set")?;
    let contexts = config.with_file_name("contexts");
    let id = Digest::of(name.as_bytes()).hex();
    let path = contexts.join("meta").join(&id).join("meta.json");
    let text = std::fs::read(&path)
        .map_err(|cause| format!("the docker context `{name}` can't be read: {}: {cause}", path.display()))?;
    let meta: Meta = serde_json::from_slice(&text).map_err(|cause| format!("{}: {cause}", path.display()))?;
    let Endpoint { host, skip_tls_verify } = meta.endpoints.docker;
    let address = DaemonAddress::parse(&host).map_err(|why| format!("the docker context `{name}`: {why}"))?;
    let folder = contexts.join("tls").join(&id).join("docker");
    Ok(match address {
        DaemonAddress::Host { authority, tls } if tls.is_some() || skip_tls_verify || folder.exists() => {
            let tls = DaemonTls { skip_verify: skip_tls_verify, ..certificates(&folder) };
            DaemonAddress::Host { authority, tls: Some(tls) }
        }
        address => address,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is chosen, in one line: who named it, and where.
    fn chosen(pairs: &[(&str, &str)], context: Option<&str>) -> String {
        match daemons(&Environment::given(pairs), context) {
            Ok(Daemons::Named(address, by)) => format!("{by}: {address}"),
            Ok(Daemons::Any(all)) => all.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "),
            Err(failure) => format!("error: {failure}"),
        }
    }

    #[test]
    fn where_daemons_are() {
        let home = tempfile::tempdir().unwrap();
        let folder = home.path().to_str().unwrap();
        let meta = home.path().join("contexts/meta").join(Digest::of(b"far").hex());
        std::fs::create_dir_all(&meta).unwrap();
        let text = r#"{"Name":"far","Metadata":{},"Endpoints":{"docker":{"Host":"tcp://far:2376","SkipTLSVerify":true}}}"#;
        std::fs::write(meta.join("meta.json"), text).unwrap();
        const USUAL: &str =
            "unix:///var/run/docker.sock unix:///r/docker.sock unix:///r/podman/podman.sock unix:///run/podman/podman.sock";
        let rows: &[(&[(&str, &str)], Option<&str>, &str)] = &[
            (&[("XDG_RUNTIME_DIR", "/r")], None, USUAL),
            (&[], None, "unix:///var/run/docker.sock unix:///run/podman/podman.sock"),
            (&[("DOCKER_HOST", "unix:///d")], None, "DOCKER_HOST: unix:///d"),
            (&[("DOCKER_HOST", "unix:///d"), ("CONTAINER_HOST", "unix:///c")], None, "DOCKER_HOST: unix:///d"),
            (&[("CONTAINER_HOST", "unix:///c")], None, "CONTAINER_HOST: unix:///c"),
            (&[("DOCKER_HOST", "tcp://d:1")], None, "DOCKER_HOST: tcp://d:1"),
            (&[("DOCKER_HOST", "tcp://d:1"), ("DOCKER_TLS_VERIFY", "1")], None, "DOCKER_HOST: tcp://d:1 (TLS)"),
            (&[("DOCKER_HOST", "ssh://d")], None, "error: DOCKER_HOST: `ssh://d`: kiln doesn't start ssh"),
            (&[("DOCKER_CONFIG", folder)], Some("far"), "the context `far`: tcp://far:2376 (TLS)"),
            (&[("DOCKER_CONFIG", folder), ("DOCKER_HOST", "unix:///d")], Some("far"), "the context `far`: tcp://far:2376 (TLS)"),
            (&[("DOCKER_CONFIG", folder), ("DOCKER_CONTEXT", "far")], None, "DOCKER_CONTEXT (`far`): tcp://far:2376 (TLS)"),
            (
                &[("DOCKER_CONFIG", folder), ("DOCKER_CONTEXT", "far"), ("DOCKER_HOST", "unix:///d")],
                None,
                "DOCKER_HOST: unix:///d",
            ),
            (&[("DOCKER_CONFIG", folder)], Some("near"), "error: the docker context `near` can't be read"),
            (&[("DOCKER_CONFIG", folder)], Some("default"), "the context `default`: unix:///var/run/docker.sock"),
        ];
        for (pairs, context, want) in rows {
            let found = chosen(pairs, *context);
            assert!(if want.starts_with("error") { found.starts_with(want) } else { found == *want }, "{pairs:?}: {found}");
        }
        std::fs::write(home.path().join("config.json"), r#"{"auths":{},"currentContext":"far"}"#).unwrap();
        let found = chosen(&[("DOCKER_CONFIG", folder)], None);
        assert!(found.starts_with("tcp://far:2376 (TLS) unix:///var/run/docker.sock"), "{found}");
    }
}
