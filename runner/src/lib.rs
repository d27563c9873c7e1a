//! Runs one command in a sandbox made of namespaces: hides the kernel from the rest of kiln.
//!
//! A program that uses [`run`] calls [`take_over`] as the first thing in `main`, for the sandbox's supervisor is the same
//! program, executed again; and [`enter`] before it has a second thread.
#![deny(unsafe_code)]

mod cancel;
mod cgroup;
mod error;
mod ground;
mod held;
mod host;
mod idmap;
mod in_place;
mod init;
mod mode;
mod mount;
mod network;
mod obstacle;
mod plan;
mod reap;
mod record;
mod remote;
mod seccomp;
mod spawn;
mod spec;
mod streams;
mod stub;
mod supervise;
mod survey;
mod sys;
mod tty;
mod user;
mod userns;
mod walk;
mod wire;

pub use cancel::Cancel;
pub use error::RunError;
pub use ground::{Ground, OverlayApi, Snapshots};
pub use host::{Devices, Host, SystemFiles};
pub use idmap::{IdMaps, Range};
pub use mode::{Isolation, Mode};
pub use remote::Remote;
pub use spawn::{run, run_attached};
pub use spec::{
    GroupLimits, Limit, Mount, MountSource, Network, Outcome, OverlayUpper, Recorder, Resource, RootFs, RunSpec, Security,
    Status, Stream, Streams,
};
pub use survey::{Finding, survey};
pub use user::{Identity, UserError, resolve_user};
pub use userns::{Entered, Refusal, Wish, enter};

/// The first call in `main`, before any thread exists: returns at once in an ordinary process; when this process was started as a
/// sandbox supervisor, or to guard a terminal, it becomes that and never returns.
pub fn take_over() {
    // Each thread's heap and each supervisor would have megabytes of zeros: with pages of two megabytes, 16 steps at once took 98
    // MB, with those of 4 KiB 8, and no more time. The command gets back what it would have without kiln (`init`).
    let _ = sys::huge_pages(false);
    if supervise::is_supervisor() {
        leave(supervise::supervise());
    }
    if tty::is_guard() {
        leave(tty::guard());
    }
    // As Go's programs do: many machines allow 1,024 files for the sake of select(2), and far more to who asks. Commands get the usual
    // limit back (`init`).
    let files = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let all = rustix::process::Rlimit { current: files.maximum, ..files };
    let _ = rustix::process::setrlimit(rustix::process::Resource::Nofile, all);
}

/// Ends this process, which is one of the sandbox's own.
fn leave(code: i32) -> ! {
    #[allow(clippy::exit, reason = "the process was made for this and has nothing else to do")]
    std::process::exit(code)
}
