//! Hides how a listing is printed: docker's table, one JSON object a line, or a template.

use serde_json::{Map, Value};

use super::template::{Template, TemplateError};

/// A field of a listing and its heading.
pub(crate) type Field = (&'static str, &'static str);

/// A listing: what its rows may show, and what they show when nobody asks otherwise.
#[derive(Debug)]
pub(crate) struct Listing {
    /// Every field with its heading, in alphabetical order, as docker's JSON has them.
    pub(crate) fields: &'static [Field],
    /// The columns of the table.
    pub(crate) columns: Vec<&'static str>,
    /// One value for each of `fields`.
    pub(crate) rows: Vec<Vec<String>>,
}

impl Listing {
    /// The text as `--format` asks: `None` and `table` the default columns, `table TEMPLATE` others, `json`, or a template.
    pub(crate) fn render(&self, format: Option<&str>) -> Result<String, TemplateError> {
        let format = format.unwrap_or("table").trim_start();
        if format == "json" || format == "{{json .}}" {
            return Ok(self.objects().map(|row| row.to_string() + "\n").collect());
        }
        let (template, is_table) = match format.strip_prefix("table") {
            Some("") => (self.columns.iter().map(|name| format!("{{{{.{name}}}}}")).collect::<Vec<_>>().join("\t"), true),
            Some(rest) if rest.starts_with([' ', '\\', '\t']) => (rest.trim_start().to_owned(), true),
            _ => (format.to_owned(), false),
        };
        let template = Template::parse(&template)?;
        let mut lines = Vec::new();
        if is_table {
            let headings = self.fields.iter().map(|(name, heading)| ((*name).to_owned(), Value::from(*heading))).collect();
            lines.push(template.render(&Value::Object(headings))?);
        }
        for row in self.objects() {
            lines.push(template.render(&row)?);
        }
        if is_table {
            return Ok(align(&lines));
        }
        Ok(lines.into_iter().map(|line| line + "\n").collect())
    }

    fn objects(&self) -> impl Iterator<Item = Value> {
        self.rows.iter().map(|row| {
            let pairs = self.fields.iter().zip(row).map(|((name, _), value)| ((*name).to_owned(), Value::from(value.as_str())));
            Value::Object(pairs.collect::<Map<_, _>>())
        })
    }
}

/// Lines whose cells are separated by tabs, in columns of at least 10 with 3 blanks between (docker's
/// `tabwriter.NewWriter(out, 10, 1, 3, ' ', 0)`; the last cell is not padded).
pub(crate) fn align(lines: &[String]) -> String {
    let rows: Vec<Vec<&str>> = lines.iter().map(|line| line.split('\t').collect()).collect();
    let mut widths: Vec<usize> = Vec::new();
    for row in &rows {
        for (column, cell) in row.iter().take(row.len() - 1).enumerate() {
            if widths.len() == column {
                widths.push(10);
            }
            widths[column] = widths[column].max(cell.chars().count() + 3);
        }
    }
    let mut out = String::new();
    for row in rows {
        for (column, cell) in row.iter().enumerate() {
            out.push_str(cell);
            if column + 1 < row.len() {
                out.push_str(&" ".repeat(widths[column].saturating_sub(cell.chars().count())));
            }
        }
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Listing {
        Listing {
            fields: &[("ID", "IMAGE ID"), ("Repository", "REPOSITORY"), ("Tag", "TAG")],
            columns: vec!["Repository", "Tag", "ID"],
            rows: vec![
                vec!["8a36bb57ef15".into(), "busybox".into(), "latest".into()],
                vec!["0123456789ab".into(), "registry.example.com/team/app".into(), "1".into()],
            ],
        }
    }

    #[test]
    fn formats() {
        let rows: &[(Option<&str>, &str)] = &[
            (
                None,
                "REPOSITORY                      TAG       IMAGE ID\n\
                 busybox                         latest    8a36bb57ef15\n\
                 registry.example.com/team/app   1         0123456789ab\n",
            ),
            (Some("table {{.Tag}}\\t{{.ID}}"), "TAG       IMAGE ID\nlatest    8a36bb57ef15\n1         0123456789ab\n"),
            (Some("{{.Repository}}:{{.Tag}}"), "busybox:latest\nregistry.example.com/team/app:1\n"),
            (
                Some("json"),
                "{\"ID\":\"8a36bb57ef15\",\"Repository\":\"busybox\",\"Tag\":\"latest\"}\n\
                 {\"ID\":\"0123456789ab\",\"Repository\":\"registry.example.com/team/app\",\"Tag\":\"1\"}\n",
            ),
        ];
        for (format, want) in rows {
            assert_eq!(sample().render(*format).as_deref(), Ok(*want), "{format:?}");
        }
        assert!(sample().render(Some("{{.Nope}}")).is_err());
    }
}
