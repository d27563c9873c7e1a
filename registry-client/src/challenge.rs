//! Hides the grammar of `WWW-Authenticate` (RFC 9110 §11.6.1) and of token scopes (distribution's `spec/auth/scope.md`). Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// How a registry wants to be convinced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Challenge {
    /// With a token from the service at `realm`.
    Bearer { realm: String, service: Option<String>, scope: Scopes },
    /// With user name and password on each request.
    Basic,
}

impl Challenge {
    /// The challenge to take among those of all `WWW-Authenticate` headers of an answer: the first usable Bearer, else Basic.
    pub(crate) fn choose<'a>(headers: impl IntoIterator<Item = &'a str>) -> Option<Self> {
        let mut chosen = None;
        for header in headers {
            for (scheme, parameters) in split(header) {
                if scheme.eq_ignore_ascii_case("bearer") {
                    let find = |name: &str| {
                        parameters.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.clone())
                    };
                    if let Some(realm) = find("realm") {
                        let scope = find("scope").map(|scope| Scopes::parse(&scope)).unwrap_or_default();
                        return Some(Self::Bearer { realm, service: find("service"), scope });
                    }
                } else if scheme.eq_ignore_ascii_case("basic") {
                    chosen = Some(Self::Basic);
                }
            }
        }
        chosen
    }
}

type Parameters = Vec<(String, String)>;

/// Splits a header into its challenges. What can't be read ends it: nothing is guessed.
fn split(header: &str) -> Vec<(String, Parameters)> {
    let mut challenges: Vec<(String, Parameters)> = Vec::new();
    let mut rest = header;
    loop {
        rest = rest.trim_start_matches([' ', '\t', ',']);
        let word = take_token(&mut rest);
        if word.is_empty() {
            return challenges;
        }
        let after_word = rest.trim_start_matches([' ', '\t']);
        match (after_word.strip_prefix('='), challenges.last_mut()) {
            (Some(value), Some((_, parameters))) => {
                rest = value.trim_start_matches([' ', '\t']);
                let Some(value) = take_value(&mut rest) else { return challenges };
                parameters.push((word.to_owned(), value));
            }
            _ => challenges.push((word.to_owned(), Vec::new())),
        }
    }
}

fn take_token<'a>(rest: &mut &'a str) -> &'a str {
    let end = rest.find(|c: char| !(c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c))).unwrap_or(rest.len());
    let (token, tail) = rest.split_at(end);
    *rest = tail;
    token
}

fn take_value(rest: &mut &str) -> Option<String> {
    let Some(quoted) = rest.strip_prefix('"') else {
        // Not every registry quotes; a bare value ends at a comma or a blank.
        let end = rest.find([',', ' ', '\t']).unwrap_or(rest.len());
        let (value, tail) = rest.split_at(end);
        *rest = tail;
        return Some(value.to_owned());
    };
    let mut value = String::new();
    let mut chars = quoted.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => {
                *rest = &quoted[at + 1..];
                return Some(value);
            }
            '\\' => value.push(chars.next()?.1),
            c => value.push(c),
        }
    }
    None
}

/// What a token lets its bearer do: actions by resource (`repository:library/busybox` → `pull`).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Scopes(BTreeMap<String, BTreeSet<String>>);

impl Scopes {
    /// The right to pull from a repository.
    pub(crate) fn pull(path: &str) -> Self {
        Self::default().with(path, &["pull"])
    }

    /// The right to pull from and to push to a repository.
    pub(crate) fn push(path: &str) -> Self {
        Self::default().with(path, &["pull", "push"])
    }

    /// These rights and some on one more repository.
    #[must_use]
    pub(crate) fn with(mut self, path: &str, actions: &[&str]) -> Self {
        let entry = self.0.entry(format!("repository:{path}")).or_default();
        entry.extend(actions.iter().map(|&action| action.to_owned()));
        self
    }

    /// Reads scopes that blanks separate; what is not `type:name:actions` is left out.
    pub(crate) fn parse(text: &str) -> Self {
        let mut scopes = Self::default();
        for scope in text.split_whitespace() {
            // The name may hold a colon (`host:port/name`), the actions can't.
            if let Some((resource, actions)) = scope.rsplit_once(':') {
                let actions = actions.split(',').filter(|action| !action.is_empty()).map(str::to_owned);
                scopes.0.entry(resource.to_owned()).or_default().extend(actions);
            }
        }
        scopes
    }

    /// These rights and those.
    #[must_use]
    pub(crate) fn union(&self, other: &Self) -> Self {
        let mut all = self.clone();
        for (resource, actions) in &other.0 {
            all.0.entry(resource.clone()).or_default().extend(actions.iter().cloned());
        }
        all
    }

    /// Whether a token with these rights has the `other` ones too.
    pub(crate) fn contain(&self, other: &Self) -> bool {
        other.0.iter().all(|(resource, actions)| self.0.get(resource).is_some_and(|own| own.is_superset(actions)))
    }

    /// The scopes one by one, as a token request repeats them.
    pub(crate) fn iter(&self) -> impl Iterator<Item = String> {
        self.0.iter().map(|(resource, actions)| {
            let actions: Vec<&str> = actions.iter().map(String::as_str).collect();
            format!("{resource}:{}", actions.join(","))
        })
    }
}

impl fmt::Display for Scopes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.iter().collect::<Vec<_>>().join(" "))
    }
}

#[cfg(test)]
mod tests {
    use super::{Challenge, Scopes};

    fn bearer(realm: &str, service: Option<&str>, scope: &str) -> Option<Challenge> {
        Some(Challenge::Bearer { realm: realm.to_owned(), service: service.map(str::to_owned), scope: Scopes::parse(scope) })
    }

    #[test]
    fn challenges_are_read() {
        let hub = r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:a/b:pull,push""#;
        let rows: &[(&[&str], Option<Challenge>)] = &[
            (&[hub], bearer("https://auth.docker.io/token", Some("registry.docker.io"), "repository:a/b:pull,push")),
            (&["Basic realm=\"r\""], Some(Challenge::Basic)),
            (&["basic"], Some(Challenge::Basic)),
            (&["Basic realm=\"r\", Bearer realm=\"https://t\""], bearer("https://t", None, "")),
            (&["Basic realm=\"r\"", "BEARER Realm=\"https://t\""], bearer("https://t", None, "")),
            (&["Bearer realm=\"https://t\" , scope=\"\" , error=\"invalid_token\""], bearer("https://t", None, "")),
            (&["Bearer realm=https://t,service=s"], bearer("https://t", Some("s"), "")),
            (&[r#"Bearer realm="a\"b\\c", service="x, y""#], bearer("a\"b\\c", Some("x, y"), "")),
            (&["Negotiate, Basic realm=\"x\""], Some(Challenge::Basic)),
            (&["Negotiate abc==, Basic realm=\"x\""], Some(Challenge::Basic)),
            (&["Bearer service=\"s\""], None),
            (&["Bearer realm=\"never closed"], None),
            (&["Bearer realm=\"bad\\"], None),
            (&[""], None),
            (&[], None),
            (&[", , ="], None),
        ];
        for (headers, expected) in rows {
            assert_eq!(Challenge::choose(headers.iter().copied()), *expected, "{headers:?}");
        }
    }

    #[test]
    fn scopes_merge_and_contain() {
        let rows = [
            ("repository:a:pull", "repository:a:push", "repository:a:pull,push", false),
            ("repository:a:pull,push", "repository:a:pull", "repository:a:pull,push", true),
            ("repository:a:pull", "repository:b:pull", "repository:a:pull repository:b:pull", false),
            ("repository:h:5000/a:pull", "", "repository:h:5000/a:pull", true),
            ("", "repository:a:pull", "repository:a:pull", false),
            ("nonsense", "", "", true),
        ];
        for (left, right, union, contained) in rows {
            let (left, right) = (Scopes::parse(left), Scopes::parse(right));
            assert_eq!(left.union(&right).to_string(), union);
            assert_eq!(left.contain(&right), contained, "{left} contains {right}");
        }
        assert_eq!(Scopes::push("x").with("y", &["pull"]).to_string(), "repository:x:pull,push repository:y:pull");
    }
}
