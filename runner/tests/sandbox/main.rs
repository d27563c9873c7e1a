//! The sandbox, tried from inside: each test runs real commands (busybox) in it.
//!
//! Not libtest's own harness, because the test program has to call `take_over` first, as kiln does.
#![allow(clippy::print_stdout, clippy::print_stderr, clippy::unwrap_used, missing_docs, unreachable_pub)]

mod chroot;
mod elf;
mod endings;
mod files;
mod groups;
mod image;
mod mounts;
mod owners;
mod process;
mod rights;
mod rootless;
mod support;
mod terminal;
mod threats;

use libtest_mimic::{Arguments, Failed, Trial};

/// Names and functions of a module's tests.
macro_rules! tests {
    ($($module:ident: $($name:ident)+;)+) => {
        vec![$($((concat!(stringify!($module), "::", stringify!($name)), $module::$name as fn())),+),+]
    };
}

fn main() {
    kiln_runner::take_over();
    let arguments: Vec<String> = std::env::args().collect();
    if arguments.get(1).is_some_and(|first| first == endings::PARENT) {
        return endings::be_parent(&arguments[2..]);
    }
    if arguments.get(1).is_some_and(|first| first == chroot::PARENT) {
        return chroot::be_parent(&arguments[2..]);
    }
    if arguments.get(1).is_some_and(|first| first == rights::TOUCH_SELF) {
        return rights::touch_self();
    }
    // While there is one thread.
    println!("mode: {}", support::host().mode);
    let mut tests = tests! {
            process: exit_codes signals streams home first_process session_and_umask limits limits_that_are_asked_for program_lookup scripts large_output invalid_requests;
            image: working_directories;
            chroot: the_root_is_as_it_was what_was_lent_comes_back_and_secrets_go environment_and_descriptors no_daemon_survives killed_parent_in_chroot;
            rights: no_new_privileges set_user_id_works hardened insecure masked_paths host_name namespaces;
            files: changes_land_in_upper deletions_are_whiteouts stubs_are_removed stub_times stubs_behind_links resolv_conf_and_hosts network_none host_network plain_directory many_lowers long_layer_paths volatile_upper_becomes_a_lower older_overlay_calls missing_layer run_is_in_the_layer kept_mount_points;
            mounts: binds tmpfs inline_files inline_files_are_not_swapped targets_that_are_refused nothing_is_left_in_the_layer;
    rootless: the_same_by_a_user_with_ids owners_by_a_user_with_one_id;
            owners: owners_and_devices other_users hostile_calls calls_by_number;
            groups: memory processors parents limits_that_are_refused groups_of_the_dead both_versions a_part_that_was_given_away;
            terminal: terminal terminals_are_filtered_too last_words_in_a_terminal failures_in_a_terminal signals_are_passed_on
                read_only_root;
            endings: killed_parent killed_at_any_moment killed_supervisor cancel_is_passed_on cancel_without_handler cancel_twice cancel_after_grace cancelled_before process_limit parallel_runs;
        };
    tests.extend(threats::TESTS);
    if std::env::var_os(threats::modes::ISOLATION).is_none() {
        tests.push(("modes::nested", threats::modes::nested));
        tests.push(("modes::rootless", threats::modes::rootless));
    }
    let skip = support::why_not();
    if let Some(reason) = &skip {
        for (name, _) in &tests {
            println!("skipped: {name}: {reason}");
        }
    }
    let trials = tests.into_iter().map(|(name, test)| {
        let trial = Trial::test(name, move || match std::panic::catch_unwind(test) {
            Ok(()) => Ok(()),
            Err(_) => Err(Failed::without_message()),
        });
        trial.with_ignored_flag(skip.is_some())
    });
    let mut arguments = Arguments::from_args();
    if arguments.test_threads.is_none() {
        arguments.test_threads = Some(4);
    }
    libtest_mimic::run(&arguments, trials.collect()).exit();
}
