//! Hides the command line from the library: what was typed, what is shown, how the process ends.

mod annotations;
mod archive;
mod args;
mod attest;
mod build;
mod caches;
mod call;
mod clock;
mod collect;
mod contexts;
mod csv;
mod daemons;
mod doctor;
mod environment;
pub(crate) mod exit;
mod fsck;
mod grants;
mod human;
mod images;
mod inspect;
mod listing;
mod manifest;
mod on_failure;
mod outputs;
mod pins;
mod progress;
mod registries_conf;
mod registry;
mod report;
mod resources;
mod run;
mod session;
mod settings;
mod space;
mod template;
mod verify;

use std::ffi::OsString;

use args::{Arguments, Command, VersionArgs};
use environment::Environment;
use exit::Exit;
use progress::Summary;
use report::{Failure, write_stdout};
use session::Session;

/// Does what the command line says.
pub(crate) fn run(args: impl IntoIterator<Item = OsString>) -> Exit {
    let Arguments { global, command, .. } = match args::parse(args) {
        Ok(arguments) => arguments,
        Err(error) => return answer(&error),
    };
    let environment = Environment::Process;
    // Before the first thread.
    let entered = match command.uses_store() {
        true => session::enter(&environment, &global),
        false => Ok(kiln_runner::Entered::nothing()),
    };
    let (entered, refused) = match entered {
        Ok(entered) => (entered, None),
        Err(failure) => (kiln_runner::Entered::nothing(), Some(failure)),
    };
    let session = Session { environment, global, entered };
    if let Some(failure) = refused {
        return session.report(false).failure(&failure, &Summary::default());
    }
    match execute(&session, &command) {
        Ok(exit) => exit,
        Err(failure) => session.report(false).failure(&failure, &Summary::default()),
    }
}

fn execute(session: &Session, command: &Command) -> Result<Exit, Failure> {
    match command {
        Command::Build(args) => return Ok(build::run(session, args)),
        Command::Run(args) => return Ok(run::run(session, args)),
        Command::Verify(args) => return Ok(verify::run(session, args)),
        Command::Manifest(args) => return manifest::run(session, args),
        Command::Push(args) => return registry::push(session, args),
        Command::Pull(args) => return registry::pull(session, args),
        Command::Save(args) => return archive::save(session, args),
        Command::Load(args) => return archive::load(session, args),
        Command::Images(args) => images::list(session, args)?,
        Command::Tag(args) => images::tag(session, args)?,
        Command::Rmi(args) => images::remove(session, args)?,
        Command::Inspect(args) => inspect::inspect(session, args)?,
        Command::History(args) => inspect::history(session, args)?,
        Command::Login(args) => registry::login(session, args)?,
        Command::Logout(args) => registry::logout(session, args)?,
        Command::Prune(args) => space::prune(session, args)?,
        Command::Du(args) => space::usage(session, args)?,
        Command::Fsck(args) => return fsck::run(session, args),
        Command::Doctor(args) => doctor::examine(session, args)?,
        Command::Version(args) => version(args)?,
        Command::Completion(args) => {
            let mut script = Vec::new();
            clap_complete::generate(args.shell, &mut args::command(), "kiln", &mut script);
            write_stdout(&String::from_utf8_lossy(&script))?;
        }
    }
    Ok(Exit::Success)
}

/// Help goes to standard output, a complaint to standard error with docker's exit code for it.
fn answer(error: &clap::Error) -> Exit {
    use clap::error::ErrorKind;
    let exit = match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => Exit::Success,
        _ => Exit::Usage,
    };
    // Who closed the stream doesn't want to know.
    let _ = match error.kind() {
        // `kiln` alone is a question, as `docker` alone is.
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => args::command().print_help(),
        _ => error.print(),
    };
    exit
}

fn version(args: &VersionArgs) -> Result<(), Failure> {
    let value = serde_json::json!({
        "Version": env!("CARGO_PKG_VERSION"),
        "Os": kiln_oci::platform::Platform::host().os,
        "Arch": kiln_oci::platform::Platform::host().architecture,
    });
    let format = match args.format.as_deref() {
        None => r"kiln:\n Version:    {{.Version}}\n OS/Arch:    {{.Os}}/{{.Arch}}",
        Some("json") => "{{json .}}",
        Some(format) => format,
    };
    write_stdout(&(template::Template::parse(format)?.render(&value)? + "\n"))
}
