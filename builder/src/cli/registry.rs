//! Hides the commands that speak to registries: `push`, `pull`, `login`, `logout`.

use std::io::{self, IsTerminal as _, Read};

use kiln::transfer;
use kiln_oci::platform::Platform;
use kiln_oci::reference::Reference;
use kiln_registry_client::credentials::Kept;
use kiln_registry_client::{Credentials, Warnings};
use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};

use super::args::{LoginArgs, LogoutArgs, PullArgs, PushArgs};
use super::build::parse_platform;
use super::exit::Exit;
use super::progress::Summary;
use super::report::{Failure, warn, write_stderr, write_stdout};
use super::session::Session;

/// Docker Hub as references name it.
const HUB: &str = "docker.io";

fn reference(text: &str) -> Result<Reference, Failure> {
    Reference::parse(text).map_err(|error| Failure::usage(format!("invalid image name `{text}`: {error}")))
}

/// Prints what a command with progress gave, or why it gave nothing.
pub(crate) fn conclude(session: &Session, result: Result<String, Failure>, summary: &Summary) -> Exit {
    let report = session.report(false);
    match result.and_then(|text| write_stdout(&text)) {
        Ok(()) => {
            report.success(summary);
            Exit::Success
        }
        Err(failure) => report.failure(&failure, summary),
    }
}

/// `kiln push`.
pub(crate) fn push(session: &Session, args: &PushArgs) -> Result<Exit, Failure> {
    let name = reference(&args.name)?;
    let mode = session.mode(args.progress, args.quiet)?;
    let platform = args.platform.as_deref().map(parse_platform).transpose()?;
    let (result, summary) = session.work("Pushing", mode, |engine| Ok(transfer::push(engine, &name, platform.as_ref())?));
    let text = result.map(|pushed| match args.quiet {
        true => format!("{name}\n"),
        false => format!("{}: digest: {} size: {}\n", name.tag().unwrap_or_default(), pushed.digest, pushed.size),
    });
    Ok(conclude(session, text, &summary))
}

/// `kiln pull`.
pub(crate) fn pull(session: &Session, args: &PullArgs) -> Result<Exit, Failure> {
    let name = reference(&args.name)?;
    let default = session.environment.text("DOCKER_DEFAULT_PLATFORM");
    let platform =
        args.platform.as_ref().or(default.as_ref()).map_or_else(|| Ok(Platform::host()), |text| parse_platform(text))?;
    let mode = session.mode(args.progress, args.quiet)?;
    let (result, summary) = session.work("Pulling", mode, |engine| {
        Ok(match args.all_platforms {
            true => transfer::pull_all(engine, &name)?,
            false => transfer::pull(engine, &name, &platform)?,
        })
    });
    let text = result.map(|pulled| {
        let status = if pulled.up_to_date { "Image is up to date for" } else { "Downloaded newer image for" };
        match args.quiet {
            true => format!("{name}\n"),
            false => format!("Digest: {}\nStatus: {status} {}\n{name}\n", pulled.digest, name.familiar()),
        }
    });
    Ok(conclude(session, text, &summary))
}

/// The registry that a person means: `https://index.docker.io/v1/` and its like are Docker Hub.
fn server(text: Option<&str>) -> String {
    let text = text.unwrap_or(HUB);
    let host = text.trim_start_matches("https://").trim_start_matches("http://");
    let host = host.split('/').next().unwrap_or(host);
    match host {
        "index.docker.io" | "registry-1.docker.io" | "" => HUB.to_owned(),
        host => host.to_owned(),
    }
}

/// `kiln login`.
pub(crate) fn login(session: &Session, args: &LoginArgs) -> Result<(), Failure> {
    let server = server(args.server.as_deref());
    let credentials = typed_credentials(args)?;
    session.client(Warnings::to(|warning| warn(&warning.to_string())), Default::default())?.check_login(&server, &credentials)?;
    if let Kept::File(path) = session.credentials().store(&server, &credentials)? {
        warn(&format!("your credentials are stored unencrypted in {}", path.display()));
    }
    write_stdout("Login Succeeded\n")
}

fn typed_credentials(args: &LoginArgs) -> Result<Credentials, Failure> {
    let interactive = io::stdin().is_terminal();
    let needs = |what: &str| Failure::usage_hint(format!("{what} is needed to log in"), "use `--username NAME --password-stdin`");
    if args.password.is_some() {
        warn("a password on the command line can be seen by others; use --password-stdin");
    }
    if args.password_stdin && args.username.is_none() {
        return Err(needs("a user name"));
    }
    let username = match &args.username {
        Some(name) => name.clone(),
        None if interactive => prompt("Username: ", true)?,
        None => return Err(needs("a user name")),
    };
    let password = match &args.password {
        Some(password) => password.clone(),
        None if args.password_stdin => {
            let mut text = String::new();
            let cause = |cause| Failure::Read { what: "the password from standard input", cause };
            io::stdin().read_to_string(&mut text).map_err(cause)?;
            text.trim_end_matches(['\r', '\n']).to_owned()
        }
        None if interactive => prompt("Password: ", false)?,
        None => return Err(needs("a password")),
    };
    match (username.is_empty(), password.is_empty()) {
        (true, _) => Err(needs("a user name")),
        (_, true) => Err(needs("a password")),
        _ => Ok(Credentials::Password { username, password }),
    }
}

/// Asks for a line at the terminal. Without `echo` the terminal sends every key at once and shows none, so that an
/// interrupt can't leave it blind.
fn prompt(question: &str, echo: bool) -> Result<String, Failure> {
    let failed = |cause| Failure::Read { what: "from the terminal", cause };
    write_stderr(question.as_bytes());
    let stdin = io::stdin();
    if echo {
        let mut line = String::new();
        stdin.read_line(&mut line).map_err(failed)?;
        return Ok(line.trim().to_owned());
    }
    let before = tcgetattr(&stdin).map_err(|errno| failed(errno.into()))?;
    let mut silent = before.clone();
    silent.local_modes -= LocalModes::ECHO | LocalModes::ICANON | LocalModes::ISIG;
    tcsetattr(&stdin, OptionalActions::Flush, &silent).map_err(|errno| failed(errno.into()))?;
    let line = read_keys(&mut stdin.lock());
    let restored = tcsetattr(&stdin, OptionalActions::Now, &before).map_err(io::Error::from);
    write_stderr(b"\n");
    let line = line.and_then(|line| restored.map(|()| line)).map_err(failed)?;
    line.ok_or(Failure::Interrupted { terminated: false })
}

/// The keys up to the end of the line; `None` after Ctrl-C.
fn read_keys(keys: &mut dyn Read) -> io::Result<Option<String>> {
    let mut line: Vec<u8> = Vec::new();
    let mut key = [0];
    while keys.read(&mut key)? == 1 {
        match key[0] {
            b'\r' | b'\n' | 4 => break,
            3 => return Ok(None),
            8 | 127 => drop(line.pop()),
            // Ctrl-U
            21 => line.clear(),
            byte => line.push(byte),
        }
    }
    String::from_utf8(line).map(Some).map_err(|_| io::ErrorKind::InvalidData.into())
}

/// `kiln logout`.
pub(crate) fn logout(session: &Session, args: &LogoutArgs) -> Result<(), Failure> {
    let server = server(args.server.as_deref());
    let credentials = session.credentials();
    let erased = credentials.erase(&server)?;
    if let Some((_, file)) = credentials.find(&server)? {
        warn(&format!("there still are credentials for {server} in {}", file.display()));
    }
    match erased {
        true => write_stdout(&format!("Removing login credentials for {server}\n")),
        false => write_stdout(&format!("Not logged in to {server}\n")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers() {
        let rows = [
            (None, "docker.io"),
            (Some("https://index.docker.io/v1/"), "docker.io"),
            (Some("localhost:5000"), "localhost:5000"),
            (Some("https://registry.example.com/"), "registry.example.com"),
        ];
        for (typed, want) in rows {
            assert_eq!(server(typed), want);
        }
    }

    #[test]
    fn keys() {
        let rows: &[(&[u8], Option<&str>)] = &[
            (b"secret\n", Some("secret")),
            (b"sx\x7fecret\r", Some("secret")),
            (b"se\x03", None),
            (b"wrong\x15ok\n", Some("ok")),
            (b"eof", Some("eof")),
        ];
        for (typed, want) in rows {
            assert_eq!(read_keys(&mut &**typed).unwrap().as_deref(), *want);
        }
    }
}
