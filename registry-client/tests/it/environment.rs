//! What the environment says: proxies and `SSL_CERT_FILE`. Each row runs this test program again, with that environment.

use std::process::Command;

use kiln_registry_client::{Options, Proxies, RegistryOptions, RetryPolicy};

use crate::registry_process::{Kind, Registry};
use crate::scripted::{Reply, Server};
use crate::{client, with_registry};

const HOST: &str = "KILN_TEST_PING_HOST";

/// The part of the tests below that runs in a process of its own; does nothing when it isn't asked by them.
#[test]
fn ping_in_its_own_process() {
    let Some(host) = std::env::var_os(HOST).and_then(|host| host.into_string().ok()) else { return };
    let settings = RegistryOptions { plain_http: Some(!host.starts_with("localhost")), ..RegistryOptions::default() };
    #[allow(clippy::disallowed_methods, reason = "this process has the environment that is tested")]
    let proxies = Proxies::from_environment(|name| std::env::var(name).ok());
    let options =
        Options { proxies, retry: RetryPolicy { attempts: 1, ..RetryPolicy::default() }, ..with_registry(&host, settings) };
    client(options).ping(&host).unwrap();
}

fn ping(host: &str, environment: &[(&str, &str)]) -> bool {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "environment::ping_in_its_own_process"]).env(HOST, host);
    for name in ["HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy", "NO_PROXY", "no_proxy"] {
        command.env_remove(name);
    }
    command.envs(environment.iter().copied()).output().unwrap().status.success()
}

#[test]
fn proxies_are_used() {
    let proxy = Server::start(|_| Reply::new(200).body("{}"));
    let url = proxy.url("");
    let direct = Server::start(|_| Reply::new(200).body("{}"));
    // Only the proxy knows this host.
    let remote = "registry.invalid:5000";
    let rows: [(&str, &[(&str, &str)], bool, usize); 5] = [
        (remote, &[], false, 0),
        (remote, &[("http_proxy", &url)], true, 1),
        (remote, &[("HTTP_PROXY", &url)], true, 1),
        (remote, &[("http_proxy", &url), ("NO_PROXY", "registry.invalid")], false, 0),
        (&direct.host(), &[("http_proxy", &url)], true, 0),
    ];
    for (host, environment, reached, proxied) in rows {
        let before = proxy.requests().len();
        assert_eq!(ping(host, environment), reached, "{host} {environment:?}");
        assert_eq!(proxy.requests().len() - before, proxied, "{host} {environment:?}");
    }
    assert_eq!(proxy.log()[0], format!("GET http://{remote}/v2/"));
}

#[test]
fn the_systems_authorities_are_believed() {
    let Some(registry) = Registry::start(Kind::Tls) else { return };
    let ca = registry.ca_file().display().to_string();
    let rows: [(&[(&str, &str)], bool); 3] =
        [(&[("SSL_CERT_FILE", &ca)], true), (&[], false), (&[("SSL_CERT_FILE", "/nonexistent")], false)];
    for (environment, believed) in rows {
        assert_eq!(ping(&registry.name(), environment), believed, "{environment:?}");
    }
}
