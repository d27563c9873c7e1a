//! Hides the commands that move images through files: `save` and `load`.

use std::io::{self, IsTerminal as _};

use kiln::export;
use kiln::request::ArchiveFormat;
use kiln_oci::reference::Reference;
use kiln_store::Store;

use super::args::{LoadArgs, SaveArgs};
use super::build::parse_platform;
use super::exit::Exit;
use super::images::find;
use super::registry::conclude;
use super::report::Failure;
use super::session::Session;

/// `kiln save`.
pub(crate) fn save(session: &Session, args: &SaveArgs) -> Result<Exit, Failure> {
    let format = match args.format.as_str() {
        "docker" | "docker-archive" => ArchiveFormat::Docker,
        "oci" | "oci-archive" => ArchiveFormat::Oci,
        other => return Err(Failure::usage(format!("unknown archive format `{other}`: it is one of docker, oci"))),
    };
    if args.output.is_none() && io::stdout().is_terminal() {
        return Err(Failure::usage_hint("cowardly refusing to save to a terminal", "use the -o flag or redirect"));
    }
    let platform = args.platform.as_deref().map(parse_platform).transpose()?;
    let mode = session.mode(None, false)?;
    let (result, summary) = session.work("Saving", mode, |engine| {
        let names: Vec<Reference> = args.images.iter().map(|text| name_of(&engine.store, text)).collect::<Result<_, _>>()?;
        Ok(export::save(engine, &names, format, platform.as_ref(), args.output.as_deref())?)
    });
    Ok(conclude(session, result.map(|()| String::new()), &summary))
}

fn name_of(store: &Store, text: &str) -> Result<Reference, Failure> {
    find(store, text)?.name.ok_or_else(|| {
        Failure::usage_hint(format!("image {text} has no name to be saved under"), format!("give it one: `kiln tag {text} NAME`"))
    })
}

/// `kiln load`.
pub(crate) fn load(session: &Session, args: &LoadArgs) -> Result<Exit, Failure> {
    if args.input.is_none() && io::stdin().is_terminal() {
        return Err(Failure::usage_hint(
            "requested load from standard input, but it is a terminal",
            "use the -i flag or redirect",
        ));
    }
    let mode = session.mode(None, args.quiet)?;
    let (result, summary) = session.work("Loading", mode, |engine| Ok(export::load(engine, args.input.as_deref())?));
    let text = result.map(|images| {
        let lines = images.iter().flat_map(|image| match image.names.is_empty() {
            true => vec![format!("Loaded image ID: {}\n", image.image_id)],
            false => image.names.iter().map(|name| format!("Loaded image: {}\n", name.familiar())).collect(),
        });
        lines.collect::<String>()
    });
    Ok(conclude(session, text, &summary))
}
