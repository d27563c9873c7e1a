//! Hides Docker Hub's headers about how many pulls are left, and when that is worth a word.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use reqwest::header::HeaderMap;

use crate::{Warning, Warnings};

/// Which registries were told of already.
#[derive(Debug, Default)]
pub(crate) struct Budget(Mutex<BTreeSet<String>>);

impl Budget {
    /// Looks at an answer's headers, and says once for each registry that little is left: a tenth or less.
    pub(crate) fn note(&self, warnings: &Warnings, registry: &str, headers: &HeaderMap) {
        let read = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).and_then(parse);
        let Some((remaining, _)) = read("ratelimit-remaining") else { return };
        let Some((limit, window)) = read("ratelimit-limit") else { return };
        if remaining > limit / 10 {
            return;
        }
        let mut told = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if told.insert(registry.to_owned()) {
            drop(told);
            warnings.say(&Warning::FewPullsLeft { registry, remaining, limit, window });
        }
    }
}

/// `100;w=21600`: a number, and the seconds that it is for.
fn parse(text: &str) -> Option<(u64, Option<Duration>)> {
    let mut parts = text.split(';').map(str::trim);
    let number = parts.next()?.parse().ok()?;
    let window = parts.find_map(|part| part.strip_prefix("w=")?.parse().ok()).map(Duration::from_secs);
    Some((number, window))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::parse;

    #[test]
    fn headers() {
        let rows = [
            ("100;w=21600", Some((100, Some(21600)))),
            ("76", Some((76, None))),
            (" 5 ; x=y; w=60", Some((5, Some(60)))),
            ("w=60", None),
            ("-1;w=60", None),
            ("", None),
        ];
        for (text, expected) in rows {
            let expected = expected.map(|(number, window): (u64, Option<u64>)| (number, window.map(Duration::from_secs)));
            assert_eq!(parse(text), expected, "{text}");
        }
    }
}
