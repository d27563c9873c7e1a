//! Hides the build checks that need nothing but the instructions: casing and names.

use super::Dockerfile;
use crate::diagnostic::Diagnostic;
use crate::lint::Rule;

/// `ConsistentInstructionCasing`: each keyword is in the case that most are in.
#[must_use]
pub fn casing_lints(file: &Dockerfile) -> Vec<Diagnostic> {
    let keywords = || {
        file.stages.iter().flat_map(|stage| {
            let commands = stage.instructions.iter().map(|i| (i.keyword.as_str(), i.span));
            std::iter::once((stage.keyword.as_str(), stage.span)).chain(commands)
        })
    };
    let lower = keywords().filter(|(word, _)| *word == word.to_lowercase()).count();
    let upper = keywords().filter(|(word, _)| *word == word.to_uppercase() && *word != word.to_lowercase()).count();
    let (wanted, name): (fn(&str) -> String, _) =
        if lower > upper { (str::to_lowercase, "lowercase") } else { (str::to_uppercase, "uppercase") };
    keywords()
        .filter(|(word, _)| *word != wanted(word))
        .map(|(word, span)| {
            let message = format!("Command '{word}' should match the case of the command majority ({name})");
            Diagnostic::lint(Rule::ConsistentInstructionCasing, message, span)
        })
        .collect()
}

/// `ReservedStageName` and `DuplicateStageName`.
#[must_use]
pub fn stage_name_lints(file: &Dockerfile) -> Vec<Diagnostic> {
    let mut out = Vec::new();
    let mut seen: Vec<&str> = Vec::new();
    for stage in &file.stages {
        let Some(name) = stage.name.as_deref() else { continue };
        if matches!(name, "context" | "scratch") {
            let message = format!("Stage name should not use the same name as reserved stage {name:?}");
            out.push(Diagnostic::lint(Rule::ReservedStageName, message, stage.span));
        }
        if seen.contains(&name) {
            let message = format!("Duplicate stage name {name:?}, stage names should be unique");
            out.push(Diagnostic::lint(Rule::DuplicateStageName, message, stage.span));
        }
        seen.push(name);
    }
    out
}
