//! The `kiln` command.
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::type_complexity, reason = "a table's row type is read off its rows"))]

mod cli;

use std::process::ExitCode;

// The static binary is built with musl, whose own allocator is 15 times slower on two threads (ARCHITECTURE.md).
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    // Before anything else: this process may be a sandbox child that never returns from here.
    kiln_runner::take_over();
    cli::exit::answer_panics();
    cli::run(std::env::args_os()).into()
}
