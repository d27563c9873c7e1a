//! Hides how a filter is written and what it matches: BuildKit's words for its records, and kiln's own for its kinds of things.

use std::str::FromStr;

use super::Kind;

/// One condition, such as `type=exec.cachemount`, `id~=9f3c`, `shared`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filter {
    field: Field,
    test: Test,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Field {
    Id,
    Parents,
    Type,
    Shared,
    InUse,
    Mutable,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Test {
    Is(String),
    IsNot(String),
    /// Anywhere in it; `^` and `$` bind it to its ends.
    Like(String),
}

/// Why a text is no filter.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("filter `{0}` is not supported")]
pub struct FilterError(String);

impl FromStr for Filter {
    type Err = FilterError;

    fn from_str(text: &str) -> Result<Self, FilterError> {
        let bad = || FilterError(text.to_owned());
        let end = text.find(['=', '!', '~']).unwrap_or(text.len());
        let (name, rest) = text.split_at(end);
        let (field, positive) = match name {
            "id" => (Field::Id, None),
            "parents" | "parent" => (Field::Parents, None),
            "type" => (Field::Type, None),
            "shared" => (Field::Shared, Some(true)),
            "private" => (Field::Shared, Some(false)),
            "inuse" => (Field::InUse, Some(true)),
            "mutable" => (Field::Mutable, Some(true)),
            "immutable" => (Field::Mutable, Some(false)),
            _ => return Err(bad()),
        };
        let test = if let Some(value) = rest.strip_prefix("!=") {
            Test::IsNot(value.to_owned())
        } else if let Some(value) = rest.strip_prefix("~=") {
            Test::Like(value.to_owned())
        } else if let Some(value) = rest.strip_prefix("==") {
            Test::Is(value.to_owned())
        } else if let Some(value) = rest.strip_prefix('=') {
            // Ids are shown cut.
            if field == Field::Id { Test::Like(value.to_owned()) } else { Test::Is(value.to_owned()) }
        } else if rest.is_empty() && positive.is_some() {
            Test::Is("true".to_owned())
        } else {
            return Err(bad());
        };
        let Some(positive) = positive else { return Ok(Self { field, test }) };
        // `private` is `shared!=true`, and so on: a boolean has one form.
        let value = match &test {
            Test::Is(value) => value == "true",
            Test::IsNot(value) => value != "true",
            Test::Like(_) => return Err(bad()),
        };
        Ok(Self { field, test: Test::Is((value == positive).to_string()) })
    }
}

/// What a filter looks at. A cache record and the layer that it keeps are one thing with two names.
#[derive(Debug, Clone)]
pub(super) struct Subject {
    pub(super) ids: Vec<String>,
    pub(super) kinds: Vec<Kind>,
    pub(super) parent: Option<String>,
    pub(super) shared: bool,
    pub(super) in_use: bool,
}

impl Filter {
    pub(super) fn admits(&self, subject: &Subject) -> bool {
        let is = |value: bool| self.test.admits(&[if value { "true" } else { "false" }]);
        match self.field {
            Field::Id => self.test.admits(&subject.ids.iter().map(String::as_str).collect::<Vec<_>>()),
            Field::Parents => self.test.admits(&subject.parent.as_deref().into_iter().collect::<Vec<_>>()),
            Field::Type => self.test.admits(&subject.kinds.iter().flat_map(|kind| words(*kind)).copied().collect::<Vec<_>>()),
            Field::Shared => is(subject.shared),
            Field::InUse => is(subject.in_use),
            Field::Mutable => is(subject.kinds.contains(&Kind::CacheMount)),
        }
    }
}

impl Test {
    fn admits(&self, values: &[&str]) -> bool {
        match self {
            Self::Is(wanted) => values.iter().any(|value| value == wanted),
            Self::IsNot(unwanted) => values.iter().all(|value| value != unwanted),
            Self::Like(part) => {
                values.iter().any(|value| match (part.strip_prefix('^').unwrap_or(part), part.starts_with('^')) {
                    (rest, true) => rest.strip_suffix('$').map_or_else(|| value.starts_with(rest), |whole| *value == whole),
                    (rest, false) => rest.strip_suffix('$').map_or_else(|| value.contains(rest), |end| value.ends_with(end)),
                })
            }
        }
    }
}

/// kiln's word for it, then BuildKit's.
fn words(kind: Kind) -> &'static [&'static str] {
    match kind {
        Kind::Image => &["image", "regular"],
        Kind::Layer => &["layer", "regular"],
        Kind::CacheRecord => &["record", "regular"],
        Kind::Blob => &["blob", "regular"],
        Kind::CacheMount => &["cachemount", "exec.cachemount"],
        Kind::Memo => &["memo", "source.local"],
        Kind::Internal => &["internal"],
    }
}

#[cfg(test)]
mod tests {
    use super::{Filter, Subject};
    use crate::gc::Kind;

    #[test]
    fn filters_and_what_they_match() {
        let step = Subject {
            ids: vec!["9f3c".into(), "n77".into()],
            kinds: vec![Kind::CacheRecord, Kind::Layer],
            parent: Some("n66".into()),
            shared: true,
            in_use: false,
        };
        let mount =
            Subject { ids: vec!["apt".into()], kinds: vec![Kind::CacheMount], parent: None, shared: false, in_use: false };
        for (text, of_step, of_mount) in [
            ("id=9f", true, false),
            ("id==9f", false, false),
            ("id==n77", true, false),
            ("id!=n77", false, true),
            ("id~=^ap", false, true),
            ("id~=^p", false, false),
            ("id~=pt$", false, true),
            ("id~=^apt$", false, true),
            ("parents=n66", true, false),
            ("type=regular", true, false),
            ("type=layer", true, false),
            ("type==exec.cachemount", false, true),
            ("type!=regular", false, true),
            ("type=source.git.checkout", false, false),
            ("shared", true, false),
            ("shared=false", false, true),
            ("private", false, true),
            ("private!=true", true, false),
            ("inuse", false, false),
            ("inuse==false", true, true),
            ("mutable", false, true),
            ("immutable", true, false),
        ] {
            let filter: Filter = text.parse().unwrap();
            assert_eq!((filter.admits(&step), filter.admits(&mount)), (of_step, of_mount), "{text}");
        }
        for text in ["", "size=3", "id", "type", "shared~=x", "id>3"] {
            assert!(text.parse::<Filter>().is_err(), "{text}");
        }
    }
}
