//! Hides how buckets and GitHub's cache are named in `--cache-from` and `--cache-to`, and what they take from the environment
//! (BuildKit `cache/remotecache/{s3,gha}`, buildx `util/buildflags`).

use std::path::PathBuf;
use std::time::Duration;

use kiln::remote_cache::backend::{GhaPlace, S3Place};
use kiln_registry_client::actions_cache::ActionsCacheOptions;
use kiln_registry_client::s3::{AwsCredentials, BucketOptions};

use super::Fields;
use crate::cli::environment::Environment;
use crate::cli::human::parse_duration;
use crate::cli::report::Failure;

/// `type=s3`.
pub(super) fn s3(fields: &mut Fields, environment: &Environment) -> Result<S3Place, Failure> {
    let mut needed = |key: &str, variables: &[&str]| {
        let found = fields.take(key).or_else(|| variables.iter().find_map(|name| environment.text(name)));
        found.ok_or_else(|| fields.hint(&format!("it has no {key}"), &format!("write `{key}=NAME`, or set {}", variables[0])))
    };
    let bucket = needed("bucket", &["AWS_BUCKET"])?;
    let region = needed("region", &["AWS_REGION", "AWS_DEFAULT_REGION"])?;
    let credentials = aws_credentials(fields, environment)?;
    let mut text = |key: &str, default: &str| fields.take(key).unwrap_or_else(|| default.to_owned());
    let (prefix, blobs_prefix, manifests_prefix) =
        (text("prefix", ""), text("blobs_prefix", "blobs/"), text("manifests_prefix", "manifests/"));
    let names: Vec<String> = text("name", "buildkit").split(';').filter(|name| !name.is_empty()).map(str::to_owned).collect();
    let endpoint = fields.take("endpoint_url").filter(|url| !url.is_empty());
    let path_style = fields.flag("use_path_style")?.unwrap_or(false);
    let touch_refresh = match fields.take("touch_refresh") {
        Some(text) => parse_duration(&text).ok_or_else(|| fields.invalid("touch_refresh", &text))?,
        None => Duration::from_secs(24 * 3600),
    };
    let upload_parallelism = count(fields, "upload_parallelism")?.unwrap_or(4);
    let attempts = count(fields, "retry_max_attempts")?;
    if let Some(mode) = fields.take("retry_mode").filter(|mode| !matches!(mode.as_str(), "standard" | "adaptive")) {
        return Err(fields.invalid("retry_mode", &mode));
    }
    // What other programs need it for (a header that Google's storage changes) is never sent.
    fields.flag("disable_accept_encoding")?;
    if names.is_empty() {
        return Err(fields.invalid("name", ""));
    }
    let attempts = attempts.map(|count| u32::try_from(count).unwrap_or(u32::MAX));
    let bucket = BucketOptions { bucket, region, endpoint, path_style, credentials, attempts };
    Ok(S3Place { bucket, prefix, blobs_prefix, manifests_prefix, names, touch_refresh, upload_parallelism })
}

fn count(fields: &mut Fields, key: &str) -> Result<Option<usize>, Failure> {
    let Some(text) = fields.take(key) else { return Ok(None) };
    match text.parse() {
        Ok(count @ 1..) => Ok(Some(count)),
        _ => Err(fields.invalid(key, &text)),
    }
}

/// From the flag, the environment, or the profile in the shared file, in this order.
fn aws_credentials(fields: &mut Fields, environment: &Environment) -> Result<AwsCredentials, Failure> {
    let given = (fields.take("access_key_id"), fields.take("secret_access_key"), fields.take("session_token"));
    let own =
        (environment.text("AWS_ACCESS_KEY_ID"), environment.text("AWS_SECRET_ACCESS_KEY"), environment.text("AWS_SESSION_TOKEN"));
    for (id, secret, session_token) in [given, own] {
        if let (Some(access_key_id), Some(secret_access_key)) = (id, secret) {
            return Ok(AwsCredentials { access_key_id, secret_access_key, session_token });
        }
    }
    let profile = environment.text("AWS_PROFILE").unwrap_or_else(|| "default".to_owned());
    let file = environment.raw("AWS_SHARED_CREDENTIALS_FILE").map(PathBuf::from);
    let file = file.or_else(|| Some(environment.home()?.join(".aws/credentials")));
    let text = file.and_then(|file| std::fs::read_to_string(file).ok()).unwrap_or_default();
    profile_of(&text, &profile).ok_or_else(|| {
        fields.hint(
            "there are no credentials for it",
            "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or write a profile into ~/.aws/credentials; kiln asks neither the metadata \
             service of an instance nor for a role by a web identity: have `aws configure export-credentials --format env` do it",
        )
    })
}

/// A profile of the file that Amazon's tools share.
fn profile_of(text: &str, profile: &str) -> Option<AwsCredentials> {
    let lines = text.lines().map(str::trim).skip_while(|line| *line != format!("[{profile}]")).skip(1);
    let lines: Vec<&str> = lines.take_while(|line| !line.starts_with('[')).collect();
    let value = |key: &str| {
        let mut pairs = lines.iter().filter(|line| !line.starts_with(['#', ';'])).filter_map(|line| line.split_once('='));
        pairs.find(|(name, _)| name.trim() == key).map(|(_, value)| value.trim().to_owned())
    };
    Some(AwsCredentials {
        access_key_id: value("aws_access_key_id")?,
        secret_access_key: value("aws_secret_access_key")?,
        session_token: value("aws_session_token"),
    })
}

/// `type=gha`.
pub(super) fn gha(fields: &mut Fields, environment: &Environment) -> Result<GhaPlace, Failure> {
    let truth = |text: String| matches!(text.to_ascii_lowercase().as_str(), "1" | "t" | "true");
    let (url, url_v2) = (fields.take("url"), fields.take("url_v2"));
    let version = fields.take("version");
    // BuildKit's `version` has been the service's once and is part of the keys now.
    let is_v2 = match (&url, &url_v2) {
        (_, Some(_)) => true,
        (Some(_), None) => false,
        (None, None) => environment.text("ACTIONS_CACHE_SERVICE_V2").is_some_and(truth),
    };
    let found = match is_v2 {
        true => url_v2.or_else(|| environment.text("ACTIONS_RESULTS_URL")),
        false => url.or_else(|| environment.text("ACTIONS_CACHE_URL")),
    };
    let inside = "it works inside of GitHub Actions, where the variables have to be handed to the step that runs kiln \
                  (`crazy-max/ghaction-github-runtime` does it)";
    let variable = if is_v2 { "ACTIONS_RESULTS_URL" } else { "ACTIONS_CACHE_URL" };
    let url = found.ok_or_else(|| fields.hint(&format!("{variable} is not set"), inside))?;
    let token = fields.take("token").or_else(|| environment.text("ACTIONS_RUNTIME_TOKEN"));
    let token = token.ok_or_else(|| fields.hint("ACTIONS_RUNTIME_TOKEN is not set", inside))?;
    let timeout = match fields.take("timeout") {
        Some(text) => parse_duration(&text).ok_or_else(|| fields.invalid("timeout", &text))?,
        None => Duration::from_secs(600),
    };
    // They let BuildKit ask which keys there are; kiln asks the cache itself.
    for key in ["repository", "ghtoken"] {
        fields.take(key);
    }
    let scope = fields.take("scope").filter(|scope| !scope.is_empty()).unwrap_or_else(|| "buildkit".to_owned());
    let version = version.unwrap_or_else(|| "1".to_owned());
    Ok(GhaPlace { service: ActionsCacheOptions { url, token, is_v2, timeout }, scope, version })
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    fn environment(pairs: &[(&str, &str)]) -> Environment {
        Environment::Given(pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect::<HashMap<_, _>>())
    }

    #[test]
    fn buckets() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("credentials");
        std::fs::write(&file, "[default]\naws_access_key_id=A\naws_secret_access_key = B\n# x\n[other]\naws_access_key_id = C\naws_secret_access_key=D\naws_session_token=E\n").unwrap();
        let file = file.to_str().unwrap();
        let rows: [(&str, &[(&str, &str)], Result<(&str, &str, Option<&str>), &str>); 9] = [
            ("bucket=b,region=r,access_key_id=I,secret_access_key=S", &[("AWS_ACCESS_KEY_ID", "x")], Ok(("I", "S", None))),
            (
                "",
                &[
                    ("AWS_BUCKET", "b"),
                    ("AWS_REGION", "r"),
                    ("AWS_ACCESS_KEY_ID", "I"),
                    ("AWS_SECRET_ACCESS_KEY", "S"),
                    ("AWS_SESSION_TOKEN", "T"),
                ],
                Ok(("I", "S", Some("T"))),
            ),
            ("bucket=b,region=r", &[("AWS_SHARED_CREDENTIALS_FILE", file)], Ok(("A", "B", None))),
            ("bucket=b,region=r", &[("AWS_SHARED_CREDENTIALS_FILE", file), ("AWS_PROFILE", "other")], Ok(("C", "D", Some("E")))),
            ("bucket=b,region=r", &[("AWS_SHARED_CREDENTIALS_FILE", file), ("AWS_PROFILE", "none")], Err("no credentials")),
            ("bucket=b", &[], Err("no region")),
            ("region=r", &[], Err("no bucket")),
            (
                "bucket=b,region=r,access_key_id=I,secret_access_key=S,upload_parallelism=0",
                &[],
                Err("invalid upload_parallelism `0`"),
            ),
            ("bucket=b,region=r,access_key_id=I,secret_access_key=S,retry_mode=x", &[], Err("invalid retry_mode `x`")),
        ];
        for (spec, variables, expected) in rows {
            let found = s3(&mut Fields::new("--cache-to", spec), &environment(variables));
            match (found, expected) {
                (Ok(place), Ok((id, secret, token))) => {
                    let AwsCredentials { access_key_id, secret_access_key, session_token } = &place.bucket.credentials;
                    assert_eq!(
                        (access_key_id.as_str(), secret_access_key.as_str(), session_token.as_deref()),
                        (id, secret, token)
                    );
                    assert_eq!((place.names, place.blobs_prefix.as_str()), (vec!["buildkit".to_owned()], "blobs/"));
                }
                (Err(failure), Err(words)) => assert!(failure.to_string().contains(words), "{failure}"),
                (found, _) => panic!("{spec}: {:?}", found.map_err(|failure| failure.to_string())),
            }
        }
        let spec = "bucket=b,region=r,prefix=p/,blobs_prefix=x/,manifests_prefix=y/,name=one;two,endpoint_url=http://h:1,use_path_style=true,\
                    access_key_id=I,secret_access_key=S,session_token=T,touch_refresh=1h,upload_parallelism=2,retry_max_attempts=3,retry_mode=adaptive";
        let place = s3(&mut Fields::new("--cache-to", spec), &environment(&[])).unwrap_or_else(|failure| panic!("{failure}"));
        assert_eq!(place.names, ["one", "two"]);
        assert_eq!(
            (place.touch_refresh, place.upload_parallelism, place.bucket.attempts),
            (Duration::from_secs(3600), 2, Some(3))
        );
        assert_eq!((place.bucket.path_style, place.bucket.endpoint.as_deref()), (true, Some("http://h:1")));
        assert!(!format!("{place:?}").contains("\"S\""));
    }

    #[test]
    fn github() {
        let both = [("ACTIONS_CACHE_URL", "http://one/"), ("ACTIONS_RESULTS_URL", "http://two/"), ("ACTIONS_RUNTIME_TOKEN", "t")];
        let v2 = [&both[..], &[("ACTIONS_CACHE_SERVICE_V2", "True")]].concat();
        let rows: [(&str, &[(&str, &str)], Result<(&str, bool, &str), &str>); 7] = [
            ("", &both, Ok(("http://one/", false, "t"))),
            ("", &v2, Ok(("http://two/", true, "t"))),
            ("url_v2=http://x,token=u", &both, Ok(("http://x", true, "u"))),
            ("url=http://x", &v2, Ok(("http://x", false, "t"))),
            ("", &[("ACTIONS_RUNTIME_TOKEN", "t")], Err("ACTIONS_CACHE_URL is not set")),
            ("", &both[..2], Err("ACTIONS_RUNTIME_TOKEN is not set")),
            ("timeout=soon", &both, Err("invalid timeout `soon`")),
        ];
        for (spec, variables, expected) in rows {
            match (gha(&mut Fields::new("--cache-to", spec), &environment(variables)), expected) {
                (Ok(GhaPlace { service, scope, version }), Ok(expected)) => {
                    assert_eq!((service.url.as_str(), service.is_v2, service.token.as_str()), expected, "{spec}");
                    assert_eq!((scope.as_str(), version.as_str()), ("buildkit", "1"));
                }
                (Err(failure), Err(words)) => assert!(failure.to_string().contains(words), "{failure}"),
                (found, _) => panic!("{spec}: {:?}", found.map_err(|failure| failure.to_string())),
            }
        }
    }
}
