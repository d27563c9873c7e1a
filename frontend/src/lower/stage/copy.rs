//! Hides what `COPY` and `ADD` become (BuildKit `convert_copy.go`).

use kiln_oci::digest::Digest;

use super::super::validate::{Address, address, check_mode, is_commit_start, redact};
use super::{Lowering, Outcome, Stage};
use crate::diagnostic::Diagnostic;
use crate::expand::Lexer;
use crate::graph::{Checksum, ContextId, CopyFrom, CopyOp, CopySource, Op};
use crate::instruction::Transfer;
use crate::lint::Rule;
use crate::lower::plan::Command;

impl Lowering<'_> {
    pub(super) fn transfer(&mut self, stage: &mut Stage, command: &Command, t: &Transfer, is_add: bool) -> Outcome<()> {
        let i = &command.instruction;
        let chown = self.word(stage, i, &t.chown)?;
        let chmod = self.word(stage, i, &t.chmod)?;
        let checksum = self.word(stage, i, &t.checksum)?;
        let paths = t.sources.iter().map(|s| self.word(stage, i, s)).collect::<Outcome<Vec<_>>>()?;
        let dest = self.word(stage, i, &t.dest)?;
        if !chmod.is_empty() {
            check_mode(&chmod).map_err(Diagnostic::error)?;
        }

        let mut sources = Vec::new();
        for path in &paths {
            sources.push(match (address(path), is_add) {
                (Address::Path, _) => {
                    self.ignored_lint(command, path, is_add);
                    CopySource::Path(path.clone())
                }
                // The flag is enough to say that an address without `.git` is a repository's (BuildKit dfgitutil).
                (Address::Http, true) if t.keep_git_dir.is_none() => CopySource::Http(path.clone()),
                (Address::Http | Address::Git, true) => CopySource::Git(path.clone()),
                (Address::Http, false) => {
                    return Err(Diagnostic::error("source can't be a URL for COPY").with_hint("use ADD to download"));
                }
                (Address::Git, false) => {
                    return Err(Diagnostic::error("source can't be a git ref for COPY"));
                }
            });
        }
        // The history and the progress are for everybody to read.
        let mut texts: Vec<String> = paths.iter().map(|path| redact(path)).collect();
        for inline in &t.inline {
            // Bodies are expanded with `\` as the escape character, whatever the file uses, and keep their quotes.
            let lexer = Lexer { ignore_quotes: true, ..Lexer::new('\\') };
            let data = if inline.expand { self.expand(stage, i, lexer, &inline.data)?.text } else { inline.data.clone() };
            sources.push(CopySource::Inline { name: inline.name.clone(), data: data.into_bytes() });
            texts.push(format!("<<{}", inline.name));
        }
        let checksum = parse_checksum(&checksum, &sources)?;

        let mut words = vec![if is_add { "ADD" } else { "COPY" }.to_owned()];
        if t.parents {
            words.push("--parents".to_owned());
        }
        if !chown.is_empty() {
            words.push(format!("--chown={chown}"));
        }
        if !chmod.is_empty() {
            words.push(format!("--chmod={chmod}"));
        }
        words.extend(texts);
        words.push(dest.clone());

        let from = match command.sources.first() {
            Some(Some(node)) => self.files_of(*node),
            _ => CopyFrom::Context(ContextId::Main),
        };
        let is_dir = dest.is_empty() || dest.ends_with('/') || dest == "." || dest.ends_with("/.");
        let op = CopyOp {
            parent: stage.parent,
            from,
            dest: stage.directory().join(dest.as_bytes()),
            dest_is_dir: is_dir || sources.len() > 1,
            sources,
            // Together with --chmod BuildKit doesn't link.
            link: t.link && chmod.is_empty(),
            chown: Some(chown).filter(|c| !c.is_empty()),
            chmod: Some(chmod).filter(|c| !c.is_empty()),
            parents: t.parents,
            exclude: t.exclude.clone(),
            is_add,
            unpack: t.unpack,
            checksum,
            keep_git_dir: t.keep_git_dir,
        };
        let mut name = self.step(stage, command, None);
        for path in paths.iter().filter(|path| redact(path) != **path) {
            name = name.replace(path, &redact(path));
        }
        stage.parent = Some(self.push(stage, name, i.span, stage.no_cache, Op::Copy(op)));
        stage.commit_layer(format!("{} # buildkit", words.join(" ")));
        Ok(())
    }

    fn ignored_lint(&mut self, command: &Command, path: &str, is_add: bool) {
        let Some(ignore) = &self.options.ignore else { return };
        if !command.sources.is_empty() || !ignore.matches(path.as_bytes()) {
            return;
        }
        let word = if is_add { "Add" } else { "Copy" };
        let message = format!("Attempting to {word} file {path:?} that is excluded by .dockerignore");
        self.lints.push(Diagnostic::lint(Rule::CopyIgnoredFile, message, command.instruction.span));
    }
}

fn parse_checksum(text: &str, sources: &[CopySource]) -> Outcome<Option<Checksum>> {
    if text.is_empty() {
        return Ok(None);
    }
    match sources {
        [CopySource::Http(_)] => {}
        [CopySource::Git(_)] => {
            let wrong = || Diagnostic::error(format!("--checksum: {text:?} is not the beginning of a git commit's id"));
            return if is_commit_start(text) { Ok(Some(Checksum::Commit(text.to_lowercase()))) } else { Err(wrong()) };
        }
        [_] => return Err(Diagnostic::error("checksum requires HTTP(S) or Git sources")),
        _ => return Err(Diagnostic::error("checksum can't be specified for multiple sources")),
    }
    let digest = Digest::parse(text).map(Checksum::Digest);
    digest.map(Some).map_err(|error| Diagnostic::error(format!("--checksum: {error}")))
}
