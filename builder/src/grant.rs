//! Hides what a build may use and nothing may keep: values and agents, which are in no key, no layer, no record and no message.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use base64::Engine as _;

use crate::ops::agent::Agent;

/// A secret's value. Its debug form shows only how long it is.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Arc<[u8]>);

impl Secret {
    /// Takes a value over.
    pub fn new(value: Vec<u8>) -> Self {
        Self(value.into())
    }

    /// The value, for whom it was given.
    pub fn reveal(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Secret({} bytes)", self.0.len())
    }
}

/// What one build was given.
#[derive(Debug, Clone, Default)]
pub struct Grants {
    /// `--secret`: values by id.
    pub secrets: BTreeMap<String, Secret>,
    /// `--ssh`: agents by id.
    pub agents: BTreeMap<String, Agent>,
    /// `--allow security.insecure`.
    pub insecure: bool,
}

impl Grants {
    /// The `Authorization` header for requests to a server, which `names` name (`host:port` before `host`): a whole header in
    /// `HTTP_AUTH_HEADER_<name>`, or a bearer token in `HTTP_AUTH_TOKEN_<name>` (BuildKit `source/http`).
    pub fn authorization(&self, names: &[String]) -> Option<Secret> {
        names.iter().find_map(|name| {
            let value = |kind: &str| Some(self.secrets.get(&format!("HTTP_AUTH_{kind}_{name}"))?.reveal().trim_ascii());
            let header = value("HEADER").map(<[u8]>::to_vec);
            header.or_else(|| Some([b"Bearer ", value("TOKEN")?].concat())).map(Secret::new)
        })
    }

    /// The `Authorization` header for a git server, named as its address names it (BuildKit `source/git`): `GIT_AUTH_HEADER.<host>`
    /// or `GIT_AUTH_TOKEN.<host>`, and without a host those for all servers. A token is the password of `x-access-token`, as
    /// GitHub, GitLab and others take it.
    pub fn git_authorization(&self, host: &str) -> Option<Secret> {
        let value = |name: String| Some(self.secrets.get(&name)?.reveal().trim_ascii());
        [format!(".{host}"), String::new()].into_iter().find_map(|scope| {
            let header = value(format!("GIT_AUTH_HEADER{scope}")).map(<[u8]>::to_vec);
            let token = || {
                let pair = [b"x-access-token:", value(format!("GIT_AUTH_TOKEN{scope}"))?].concat();
                Some(format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(pair)).into_bytes())
            };
            header.or_else(token).map(Secret::new)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_shows_nothing() {
        let secrets = BTreeMap::from([("id".to_owned(), Secret::new(b"canary".to_vec()))]);
        let shown = format!("{:?}", Grants { secrets, ..Grants::default() });
        assert!(shown.contains("Secret(6 bytes)") && !shown.contains("canary") && !shown.contains("99, 97"), "{shown}");
    }

    #[test]
    fn authorization() {
        type Row = (&'static [(&'static str, &'static str)], Option<&'static str>);
        let rows: &[Row] = &[
            (&[], None),
            (&[("HTTP_AUTH_TOKEN_h", "t\n")], Some("Bearer t")),
            (&[("HTTP_AUTH_HEADER_h", "Basic x"), ("HTTP_AUTH_TOKEN_h", "t")], Some("Basic x")),
            (&[("HTTP_AUTH_TOKEN_h:81", "port"), ("HTTP_AUTH_HEADER_h", "Basic x")], Some("Bearer port")),
            (&[("HTTP_AUTH_TOKEN_other", "t")], None),
        ];
        for (given, want) in rows {
            let secrets = given.iter().map(|(id, v)| ((*id).to_owned(), Secret::new(v.as_bytes().to_vec()))).collect();
            let grants = Grants { secrets, ..Grants::default() };
            let got = grants.authorization(&["h:81".to_owned(), "h".to_owned()]);
            assert_eq!(got.as_ref().map(Secret::reveal), want.map(str::as_bytes), "{given:?}");
        }
    }

    #[test]
    fn git_authorization() {
        type Row = (&'static [(&'static str, &'static str)], Option<&'static str>);
        // echo -n x-access-token:t | base64
        let token = Some("Basic eC1hY2Nlc3MtdG9rZW46dA==");
        let rows: &[Row] = &[
            (&[], None),
            (&[("GIT_AUTH_TOKEN", "t\n")], token),
            (&[("GIT_AUTH_HEADER", "Basic x"), ("GIT_AUTH_TOKEN.h:81", "t")], token),
            (&[("GIT_AUTH_HEADER.h:81", "Bearer x"), ("GIT_AUTH_TOKEN.h:81", "t")], Some("Bearer x")),
            (&[("GIT_AUTH_HEADER", "Basic x"), ("GIT_AUTH_TOKEN", "t")], Some("Basic x")),
            (&[("GIT_AUTH_TOKEN.h", "t"), ("GIT_AUTH_HEADER.other", "x")], None),
        ];
        for (given, want) in rows {
            let secrets = given.iter().map(|(id, v)| ((*id).to_owned(), Secret::new(v.as_bytes().to_vec()))).collect();
            let grants = Grants { secrets, ..Grants::default() };
            assert_eq!(grants.git_authorization("h:81").as_ref().map(Secret::reveal), want.map(str::as_bytes), "{given:?}");
        }
    }
}
