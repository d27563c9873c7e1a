//! Hides how an address says which repository, which commit and which folder of it is meant (BuildKit `util/gitutil`,
//! `frontend/dockerfile/dfgitutil`).

use reqwest::Url;

use super::GitError;
use crate::grant::Secret;

/// What an address of a git repository says. Remote and reference are such that git can't take them for options.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GitAddress {
    /// What git is given, without user and password if it speaks http.
    pub(super) remote: String,
    /// The value of an `Authorization` header that user and password of an http address come to.
    pub(super) authorization: Option<Secret>,
    /// The address as messages show it.
    shown: String,
    pub(super) transport: Transport,
    pub(super) reference: Wanted,
    /// Names below the root of the repository; none of them `..`.
    pub(super) subdir: Vec<String>,
    /// How the id of the commit must begin: lower-case hexadecimal digits.
    pub(super) checksum: Option<String>,
    /// `keep-git-dir=`.
    pub keep_git_dir: Option<bool>,
    /// `submodules=`.
    pub(super) submodules: bool,
}

/// How a repository is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Transport {
    Http,
    Ssh,
    Git,
    File,
}

/// Which commit is meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Wanted {
    /// The default branch.
    Head,
    /// A branch, a tag, or the full name of a reference.
    Name(String),
    Branch(String),
    Tag(String),
    /// A whole commit id.
    Commit(String),
}

/// Who wrote an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// The person at the command line, who may mean repositories of this machine (`file://`) and use keys of theirs.
    CommandLine,
    /// A Dockerfile.
    Dockerfile,
}

impl GitAddress {
    /// Whether `text` is the address of a git repository, where a path or another address could stand as well.
    pub fn is_meant(text: &str) -> bool {
        let path = |text: &str| text.split(['#', '?']).next().unwrap_or_default().to_owned();
        match text.split_once("://") {
            Some(("git" | "ssh" | "file", _)) => true,
            Some(("http" | "https", _)) => path(text).ends_with(".git"),
            Some(_) => false,
            None => text.starts_with("github.com/") || scp_like(text).is_some(),
        }
    }

    /// Parses `text`: `REMOTE#ref:subdir`, or `REMOTE?ref=…&subdir=…`.
    ///
    /// # Errors
    /// [`GitError::Address`].
    pub fn parse(text: &str, origin: Origin) -> Result<Self, GitError> {
        let shown = redact(text);
        let fail = |reason: String| GitError::Address { url: shown.clone(), reason };
        let whole = if text.starts_with("github.com/") { format!("https://{text}") } else { text.to_owned() };
        let (rest, fragment) = match whole.split_once('#') {
            Some((rest, fragment)) => (rest.to_owned(), Some(fragment.to_owned())),
            None => (whole, None),
        };
        let (base, query) = match rest.split_once('?') {
            Some((base, query)) => (base.to_owned(), Some(query.to_owned())),
            None => (rest, None),
        };
        let (remote, transport, authorization) = remote(&base, origin).map_err(&fail)?;
        let mut address = Self {
            remote,
            authorization,
            shown: shown.clone(),
            transport,
            reference: Wanted::Head,
            subdir: Vec::new(),
            checksum: None,
            keep_git_dir: None,
            submodules: true,
        };
        let mut name = None;
        if let Some(fragment) = fragment {
            let (wanted, subdir) = fragment.split_once(':').unwrap_or((&fragment, ""));
            name = Some(("ref".to_owned(), wanted.to_owned())).filter(|(_, wanted)| !wanted.is_empty());
            address.subdir = folders(subdir).map_err(&fail)?;
        }
        if let Some(query) = query {
            address.query(&query, &mut name).map_err(&fail)?;
        }
        if let Some((kind, wanted)) = name {
            check_reference(&wanted).map_err(&fail)?;
            address.reference = match kind.as_str() {
                "branch" => Wanted::Branch(wanted),
                "tag" => Wanted::Tag(wanted),
                _ if is_commit(&wanted) => Wanted::Commit(wanted.to_lowercase()),
                _ => Wanted::Name(wanted),
            };
        } else if let Some(commit) = address.checksum.as_ref().filter(|commit| is_commit(commit)) {
            // Without a reference the commit itself is meant, if its whole id is there.
            address.reference = Wanted::Commit(commit.clone());
        }
        Ok(address)
    }

    fn query(&mut self, query: &str, name: &mut Option<(String, String)>) -> Result<(), String> {
        // Any base will do: only the query of it is of interest.
        let pairs = Url::parse(&format!("http://h/?{query}")).map_err(|e| e.to_string())?;
        let mut seen = Vec::new();
        for (key, value) in pairs.query_pairs() {
            let value = value.into_owned();
            if value.is_empty() && !matches!(&*key, "keep-git-dir" | "submodules") {
                return Err(format!("`{key}` in its query has no value"));
            }
            if seen.contains(&key) {
                return Err(format!("`{key}` stands in its query twice"));
            }
            seen.push(key.clone());
            match &*key {
                "ref" | "branch" | "tag" => {
                    let plain = |kind: &str, name: &str| match kind {
                        "branch" => name.strip_prefix("refs/heads/").unwrap_or(name).to_owned(),
                        "tag" => name.strip_prefix("refs/tags/").unwrap_or(name).to_owned(),
                        _ => name.to_owned(),
                    };
                    let agrees = |(kind, before): &(String, String)| {
                        let either_way = plain(&key, before) == plain(&key, &value) || plain(kind, before) == plain(kind, &value);
                        either_way && !matches!((kind.as_str(), &*key), ("tag", "branch") | ("branch", "tag"))
                    };
                    if name.as_ref().is_some_and(|before| !agrees(before)) {
                        return Err(format!("`{key}={value}` contradicts another reference in it"));
                    }
                    // `ref` says less than the others.
                    if name.is_none() || &*key != "ref" {
                        *name = Some((key.into_owned(), value));
                    }
                }
                "subdir" => {
                    let folders = folders(&value)?;
                    if !self.subdir.is_empty() && self.subdir != folders {
                        return Err("it names two folders".to_owned());
                    }
                    self.subdir = folders;
                }
                "checksum" | "commit" => self.expect(&value)?,
                "keep-git-dir" => self.keep_git_dir = Some(boolean(&key, &value)?),
                "submodules" => self.submodules = boolean(&key, &value)?,
                // The times of a checkout are the commit's here, so that the same commit gives the same bytes.
                "mtime" if matches!(value.as_str(), "checkout" | "commit") => {}
                "mtime" => return Err("`mtime` in its query is checkout or commit".to_owned()),
                _ => return Err(format!("`{key}` in its query is not known")),
            }
        }
        Ok(())
    }

    /// Asks for a commit whose id begins like this.
    pub(super) fn expect(&mut self, commit: &str) -> Result<(), String> {
        let is_hex = !commit.is_empty() && commit.len() <= 64 && commit.bytes().all(|b| b.is_ascii_hexdigit());
        if !is_hex {
            return Err(format!("`{commit}` is not the beginning of a commit's id"));
        }
        let commit = commit.to_lowercase();
        match &self.checksum {
            Some(before) if !before.starts_with(&commit) && !commit.starts_with(before) => {
                return Err("it names two commits".to_owned());
            }
            _ => self.checksum = Some(commit),
        }
        Ok(())
    }

    /// The server as the address names it: `host` or `host:port`.
    pub(super) fn host(&self) -> &str {
        let rest = self.remote.split_once("://").map_or("", |(_, rest)| rest);
        let authority = rest.split('/').next().unwrap_or_default();
        authority.rsplit_once('@').map_or(authority, |(_, host)| host)
    }

    /// The address without what may be a password.
    pub fn shown(&self) -> &str {
        &self.shown
    }
}

/// What git is to be given of an address without query and fragment.
fn remote(base: &str, origin: Origin) -> Result<(String, Transport, Option<Secret>), String> {
    if base.starts_with('-') || base.bytes().any(|b| b.is_ascii_control() || b == b' ') {
        return Err("it holds characters that no address has".to_owned());
    }
    let Some((scheme, rest)) = base.split_once("://") else {
        let Some((user, host, path)) = scp_like(base) else { return Err("it is not the address of a git repository".to_owned()) };
        if host.starts_with('-') || user.starts_with('-') || path.starts_with('-') {
            return Err("a part of it could be taken for an option".to_owned());
        }
        return Ok((base.to_owned(), Transport::Ssh, None));
    };
    let transport = match scheme {
        "http" | "https" => Transport::Http,
        "ssh" => Transport::Ssh,
        "git" => Transport::Git,
        "file" if origin == Origin::CommandLine => Transport::File,
        "file" => return Err("a Dockerfile may not name repositories of this machine".to_owned()),
        _ => return Err(format!("`{scheme}` is not a way to reach a git repository")),
    };
    if transport == Transport::File {
        return if rest.starts_with('/') {
            Ok((base.to_owned(), transport, None))
        } else {
            Err("its path is not absolute".to_owned())
        };
    }
    let mut url = Url::parse(base).map_err(|e| e.to_string())?;
    match url.host_str() {
        None | Some("") => return Err("it names no host".to_owned()),
        Some(host) if host.starts_with('-') => return Err("its host could be taken for an option".to_owned()),
        Some(_) => {}
    }
    if url.username().starts_with('-') {
        return Err("its user could be taken for an option".to_owned());
    }
    if transport != Transport::Http {
        return match url.password() {
            Some(_) => Err("a password is of no use there".to_owned()),
            None => Ok((base.to_owned(), transport, None)),
        };
    }
    let decode = |text: &str| -> Vec<u8> { crate::ops::http::percent_decode(text.as_bytes()) };
    let authorization = (!url.username().is_empty() || url.password().is_some()).then(|| {
        use base64::Engine as _;
        let pair = [decode(url.username()), b":".to_vec(), decode(url.password().unwrap_or_default())].concat();
        Secret::new(format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(pair)).into_bytes())
    });
    // These fail only for addresses that can't have a user at all.
    let _ = url.set_username("");
    let _ = url.set_password(None);
    Ok((url.to_string(), transport, authorization))
}

/// `user@host:path`, as ssh takes it.
fn scp_like(text: &str) -> Option<(&str, &str, &str)> {
    let (user, rest) = text.split_once('@')?;
    let (host, path) = rest.split_once(':')?;
    let word = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'));
    (word(user) && word(host) && !path.is_empty() && !path.starts_with("//")).then_some((user, host, path))
}

/// The names of a folder below the root of the repository.
fn folders(subdir: &str) -> Result<Vec<String>, String> {
    if subdir.starts_with('/') {
        return Err(format!("its folder `{subdir}` is absolute"));
    }
    let names = subdir.split('/').filter(|name| !matches!(*name, "" | "."));
    let names: Vec<String> = names.map(str::to_owned).collect();
    match names.iter().any(|name| name == ".." || name.contains('\0')) {
        true => Err(format!("its folder `{subdir}` leads out of the repository")),
        false => Ok(names),
    }
}

/// What git itself takes as the name of a reference (git-check-ref-format), and no option.
fn check_reference(name: &str) -> Result<(), String> {
    let forbidden = |b: u8| b.is_ascii_control() || b" ~^:?*[\\".contains(&b);
    let bad = name.starts_with(['-', '/', '.'])
        || name.ends_with(['/', '.'])
        || name.ends_with(".lock")
        || ["..", "@{", "//", "/."].iter().any(|part| name.contains(part))
        || name.bytes().any(forbidden);
    if bad { Err(format!("`{name}` can't be the name of a reference")) } else { Ok(()) }
}

fn is_commit(text: &str) -> bool {
    matches!(text.len(), 40 | 64) && text.bytes().all(|b| b.is_ascii_hexdigit())
}

fn boolean(key: &str, value: &str) -> Result<bool, String> {
    match value {
        "" | "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err(format!("`{key}={value}` is neither true nor false")),
    }
}

/// The address without user and password, also where it is no address at all. The user of an ssh address is no secret.
pub fn redact(text: &str) -> String {
    let Some((scheme, rest)) = text.split_once("://") else { return text.to_owned() };
    let authority = rest.split(['/', '?', '#']).next().unwrap_or(rest);
    match authority.rsplit_once('@') {
        Some((user, _)) if scheme.ends_with("http") || scheme.ends_with("https") || user.contains(':') => {
            format!("{scheme}://{}", &rest[user.len() + 1..])
        }
        _ => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<GitAddress, String> {
        GitAddress::parse(text, Origin::CommandLine).map_err(|e| e.to_string())
    }

    #[test]
    fn what_is_meant() {
        let rows = [
            ("https://h/a.git", true),
            ("https://h/a.git#v1:sub", true),
            ("https://h/a.git?ref=v1", true),
            ("https://h/a.tar.gz", false),
            ("git://h/a", true),
            ("ssh://git@h/a", true),
            ("file:///r.git", true),
            ("git@h:a/b", true),
            ("github.com/a/b", true),
            ("./a.git", false),
            ("dir@x", false),
            ("docker-image://alpine", false),
        ];
        for (text, want) in rows {
            assert_eq!(GitAddress::is_meant(text), want, "{text}");
        }
    }

    #[test]
    fn parts() {
        let name = |text: &str| Wanted::Name(text.to_owned());
        let sha = "0123456789abcdef0123456789abcdef01234567";
        let rows: Vec<(String, &str, Wanted, &str)> = vec![
            ("https://h/a.git".into(), "https://h/a.git", Wanted::Head, ""),
            ("https://u:p%40@h:8/a.git#v1".into(), "https://h:8/a.git", name("v1"), ""),
            ("https://h/a.git#:x/./y/".into(), "https://h/a.git", Wanted::Head, "x/y"),
            ("https://h/a.git#refs/pull/1/head:x".into(), "https://h/a.git", name("refs/pull/1/head"), "x"),
            ("https://h/a.git?branch=b&subdir=s%2Ft".into(), "https://h/a.git", Wanted::Branch("b".into()), "s/t"),
            ("https://h/a.git?tag=v1&submodules=0".into(), "https://h/a.git", Wanted::Tag("v1".into()), ""),
            (format!("https://h/a.git?commit={sha}"), "https://h/a.git", Wanted::Commit(sha.into()), ""),
            ("https://h/a.git?commit=0123&submodules".into(), "https://h/a.git", Wanted::Head, ""),
            ("https://h/a.git?ref=refs/tags/v1&tag=v1".into(), "https://h/a.git", Wanted::Tag("v1".into()), ""),
            ("https://h/a.git?mtime=commit#v1".into(), "https://h/a.git", name("v1"), ""),
            (format!("https://h/a.git?ref={sha}"), "https://h/a.git", Wanted::Commit(sha.into()), ""),
            ("git@h:a/b.git#main:d".into(), "git@h:a/b.git", name("main"), "d"),
            ("ssh://git@h:22/a#main".into(), "ssh://git@h:22/a", name("main"), ""),
            ("git://h/a.git#main".into(), "git://h/a.git", name("main"), ""),
            ("github.com/a/b#main".into(), "https://github.com/a/b", name("main"), ""),
            ("file:///srv/r.git#main".into(), "file:///srv/r.git", name("main"), ""),
        ];
        for (text, remote, reference, subdir) in rows {
            let address = parse(&text).unwrap_or_else(|e| panic!("{text}: {e}"));
            assert_eq!((address.remote.as_str(), &address.reference), (remote, &reference), "{text}");
            assert_eq!(address.subdir.join("/"), subdir, "{text}");
        }
        let with_password = parse("https://u:p%40@h/a.git").unwrap();
        assert_eq!(with_password.authorization.as_ref().unwrap().reveal(), b"Basic dTpwQA==");
        assert!(!format!("{with_password:?}").contains("p%40"), "{with_password:?}");
        assert_eq!(parse("https://h/a.git?commit=AB12&keep-git-dir=1").unwrap().checksum.unwrap(), "ab12");
    }

    #[test]
    fn refused() {
        let rows = [
            ("https://h/a.git#--upload-pack=x", "can't be the name of a reference"),
            ("https://h/a.git#-x", "can't be the name of a reference"),
            ("https://h/a.git?ref=-x", "can't be the name of a reference"),
            ("https://h/a.git#a..b", "can't be the name of a reference"),
            ("https://h/a.git#a:../x", "leads out of the repository"),
            ("https://h/a.git#a:x/../../y", "leads out of the repository"),
            ("https://h/a.git?subdir=..", "leads out of the repository"),
            ("https://h/a.git#a:/etc", "is absolute"),
            ("ssh://-oProxyCommand=x/a", "option"),
            ("git@-oProxyCommand:a", "option"),
            ("git@h:-a", "option"),
            ("https://h/a.git?checksum=zz", "not the beginning of a commit's id"),
            ("https://h/a.git?branch=a&tag=a", "contradicts another reference"),
            ("https://h/a.git?ref=", "`ref` in its query has no value"),
            ("https://h/a.git?subdir=a&subdir=a", "twice"),
            ("https://h/a.git?mtime=now", "`mtime` in its query is checkout or commit"),
            ("https://h/a.git?ref=a&tag=b", "contradicts another reference"),
            ("https://h/a.git?nope=1", "`nope` in its query is not known"),
            ("https://h/a.git?submodules=maybe", "neither true nor false"),
            ("ext::sh -c x", "holds characters"),
            ("-x", "holds characters"),
        ];
        for (text, want) in rows {
            let got = parse(text).unwrap_err();
            assert!(got.contains(want), "{text}: {got}");
        }
        let secret = parse("https://user:canary@h/a.git#-x").unwrap_err();
        assert!(!secret.contains("canary") && !secret.contains("user"), "{secret}");
        assert!(GitAddress::parse("file:///r.git", Origin::Dockerfile).is_err());
    }
}
