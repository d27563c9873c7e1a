//! Hides the numbers that the process ends with; they are stable.

use std::io::Write as _;
use std::process::ExitCode;

use kiln::error::Kind;

/// How the process ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exit {
    /// As the command of `kiln run` did.
    As(u8),
    /// All went well.
    Success,
    /// The build, or what else was asked for, failed.
    Failed,
    /// The Dockerfile is wrong.
    Dockerfile,
    /// A registry or its credentials.
    Registry,
    /// This host can't give the sandbox that was asked for.
    Host,
    /// The store can't be used.
    Store,
    /// A bug of kiln (`EX_SOFTWARE` of sysexits.h).
    Bug,
    /// The command line or the settings are wrong, as docker has it.
    Usage,
    /// 128 + SIGINT.
    Interrupted,
    /// 128 + SIGTERM.
    Terminated,
}

impl Exit {
    /// The number.
    fn code(self) -> u8 {
        match self {
            Exit::As(code) => code,
            Exit::Success => 0,
            Exit::Failed => 1,
            Exit::Dockerfile => 3,
            Exit::Registry => 4,
            Exit::Host => 5,
            Exit::Store => 6,
            Exit::Bug => 70,
            Exit::Usage => 125,
            Exit::Interrupted => 130,
            Exit::Terminated => 143,
        }
    }
}

impl From<Kind> for Exit {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::Build => Exit::Failed,
            Kind::Dockerfile => Exit::Dockerfile,
            Kind::Registry => Exit::Registry,
            Kind::Host => Exit::Host,
            Kind::Store => Exit::Store,
            Kind::Interrupted => Exit::Interrupted,
            Kind::Bug => Exit::Bug,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        ExitCode::from(exit.code())
    }
}

/// Ends the process now, from whatever thread.
pub(crate) fn at_once(exit: Exit) -> ! {
    #[expect(clippy::exit, reason = "a second signal and a panic must not wait for threads that may hang")]
    std::process::exit(i32::from(exit.code()))
}

/// Makes a panic of any thread say what it is and end the process with [`Exit::Bug`]; release builds would abort otherwise.
pub(crate) fn answer_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map_or_else(|| "an unknown place".to_owned(), ToString::to_string);
        let payload = panic.payload();
        let text = payload.downcast_ref::<&str>().copied().or_else(|| payload.downcast_ref::<String>().map(String::as_str));
        let _ = write!(
            std::io::stderr().lock(),
            "\nERROR: kiln {version} stopped because of a bug of its own: {text}\n  at {place}\n  on {os}/{arch}, thread `{thread}`\n\
             hint: please report these lines, the command and the Dockerfile at {home}/issues; the store is not damaged by this\n",
            version = env!("CARGO_PKG_VERSION"),
            text = text.unwrap_or("no message"),
            os = std::env::consts::OS,
            arch = std::env::consts::ARCH,
            thread = std::thread::current().name().unwrap_or("unnamed"),
            home = env!("CARGO_PKG_REPOSITORY"),
        );
        at_once(Exit::Bug);
    }));
}
