//! Hides the part of Go's template language that people use with `--format`: `{{.Field}}`, `{{.A.B}}`, `{{json .}}`,
//! `{{upper .X}}`, `{{lower .X}}`, `{{println}}`; anything else is refused and not misread.

use serde_json::Value;

/// A template that was understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Template(Vec<Piece>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Piece {
    Text(String),
    Field { function: Function, path: Vec<String> },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Function {
    Plain,
    Json,
    Upper,
    Lower,
}

/// Why a template can't be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum TemplateError {
    /// `{{` without `}}`.
    #[error("template has `{{{{` without `}}}}`")]
    Unclosed,
    /// Go may know it, kiln doesn't.
    #[error(
        "template action `{{{{{0}}}}}` is not supported: kiln knows `{{{{.Field}}}}`, `{{{{json .Field}}}}`, `{{{{upper .Field}}}}` and `{{{{lower .Field}}}}`"
    )]
    Unsupported(String),
    /// The row has no such field.
    #[error("template names `.{0}`, which isn't a field here")]
    NoField(String),
}

impl Template {
    /// Understands `text`; `\t` and `\n` may be written as escapes.
    pub(crate) fn parse(text: &str) -> Result<Self, TemplateError> {
        let mut pieces = Vec::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once("{{") {
            let (action, after) = after.split_once("}}").ok_or(TemplateError::Unclosed)?;
            if !before.is_empty() {
                pieces.push(Piece::Text(unescape(before)));
            }
            pieces.push(action_of(action)?);
            rest = after;
        }
        if !rest.is_empty() {
            pieces.push(Piece::Text(unescape(rest)));
        }
        Ok(Self(pieces))
    }

    /// The text for one value.
    pub(crate) fn render(&self, value: &Value) -> Result<String, TemplateError> {
        let mut out = String::new();
        for piece in &self.0 {
            match piece {
                Piece::Text(text) => out.push_str(text),
                Piece::Field { function, path } => {
                    let mut found = value;
                    for key in path {
                        found = found.get(key).ok_or_else(|| TemplateError::NoField(path.join(".")))?;
                    }
                    match function {
                        Function::Plain => out.push_str(&plain(found)),
                        Function::Json => out.push_str(&found.to_string()),
                        Function::Upper => out.push_str(&plain(found).to_uppercase()),
                        Function::Lower => out.push_str(&plain(found).to_lowercase()),
                    }
                }
            }
        }
        Ok(out)
    }
}

fn action_of(action: &str) -> Result<Piece, TemplateError> {
    let unsupported = || TemplateError::Unsupported(action.trim().to_owned());
    let words: Vec<&str> = action.trim().trim_start_matches("- ").trim_end_matches(" -").split_whitespace().collect();
    let (function, field) = match words.as_slice() {
        ["println"] => return Ok(Piece::Text("\n".to_owned())),
        [field] => (Function::Plain, *field),
        ["json", field] => (Function::Json, *field),
        ["upper", field] => (Function::Upper, *field),
        ["lower", field] => (Function::Lower, *field),
        _ => return Err(unsupported()),
    };
    let path = field.strip_prefix('.').ok_or_else(unsupported)?;
    let path: Vec<String> = if path.is_empty() { Vec::new() } else { path.split('.').map(str::to_owned).collect() };
    if path.iter().any(|key| key.is_empty() || !key.chars().all(|c| c.is_alphanumeric() || c == '_')) {
        return Err(unsupported());
    }
    Ok(Piece::Field { function, path })
}

fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => "<no value>".to_owned(),
        // As Go prints a slice.
        Value::Array(items) => format!("[{}]", items.iter().map(plain).collect::<Vec<_>>().join(" ")),
        Value::Object(map) => {
            let mut entries: Vec<String> = map.iter().map(|(key, value)| format!("{key}:{}", plain(value))).collect();
            entries.sort();
            format!("map[{}]", entries.join(" "))
        }
        other => other.to_string(),
    }
}

fn unescape(text: &str) -> String {
    text.replace("\\t", "\t").replace("\\n", "\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn rows() {
        let value = json!({ "ID": "sha256:ab", "Config": { "Env": ["A=1", "B=2"], "Labels": {"k": "v"} }, "Size": 7 });
        let rows: &[(&str, Result<&str, &str>)] = &[
            ("{{.ID}}", Ok("sha256:ab")),
            (r"{{.ID}}\t{{ .Size }}", Ok("sha256:ab\t7")),
            ("{{upper .ID}}!", Ok("SHA256:AB!")),
            ("{{.Config.Env}}", Ok("[A=1 B=2]")),
            ("{{json .Config.Env}}", Ok(r#"["A=1","B=2"]"#)),
            ("{{.Config.Labels}}", Ok("map[k:v]")),
            ("{{json .}}", Ok(r#"{"ID":"sha256:ab","Config":{"Env":["A=1","B=2"],"Labels":{"k":"v"}},"Size":7}"#)),
            ("plain", Ok("plain")),
            ("{{.Nope}}", Err("template names `.Nope`, which isn't a field here")),
            ("{{.ID", Err("template has `{{` without `}}`")),
        ];
        for (text, want) in rows {
            let got = Template::parse(text).and_then(|template| template.render(&value)).map_err(|error| error.to_string());
            assert_eq!(got.as_deref().map_err(String::as_str), *want, "{text}");
        }
        let range = Template::parse("{{range .Config.Env}}x{{end}}");
        assert!(matches!(range, Err(TemplateError::Unsupported(action)) if action == "range .Config.Env"));
    }
}
