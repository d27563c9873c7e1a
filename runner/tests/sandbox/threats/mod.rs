//! The known ways out of a sandbox, one test for each by the id of its class: `cargo test -p kiln-runner c17`. In the
//! modes of ordinary users and of containers they run again (`modes`).
//!
//! Those that need a whole build are in `builder/tests/it/threats`. What each class was, and where it is tried here:
//!
//! | id | what happened elsewhere | tried in |
//! |---|---|---|
//! | C01 | a descriptor of the host's as working directory (CVE-2024-21626) | `descriptors`, builder |
//! | C02 | a sub-path that is swapped while two steps mount it (CVE-2024-23651) | `places`, builder |
//! | C03 | clean-up that follows links (CVE-2024-23652) | `places`, builder |
//! | C04 | rights asked for by the build, messages that crash (CVE-2024-23653, -23650) | `wire` (unit test), builder |
//! | C05, C06, C07 | git references, frontends, git sub-directories | builder |
//! | C08, C10, C12 | something else in the place of /dev, /proc, … (CVE-2025-31133, -2026-41579, -2023-27561, -28642, -2021-30465) | `places` |
//! | C09 | writes to /proc that are led astray (CVE-2025-52565, -52881) | `traced` |
//! | C11 | mount points made on the host (CVE-2024-45310, -2026-41568) | `places` |
//! | C13 | the runtime's own file overwritten (CVE-2019-5736) | `rights`, builder |
//! | C14 | programs and libraries of the image run by the runtime (CVE-2019-14271, -2026-41567) | `traced` |
//! | C15 | inheritable capabilities (CVE-2022-24769, -27651) | `rights` |
//! | C16 | supplementary groups (CVE-2022-36109, -2989, CVE-2023-25173) | `users` |
//! | C17 | users that turn into root (CVE-2024-40635, CVE-2026-46680) | `users` |
//! | C18, C19 | endless and odd passwd files (CVE-2026-47262, GHSA-mjcv-p78q-w5fw, CVE-2024-9676) | `users` |
//! | C20 | bind mounts of links and of what changes (CVE-2024-1753, -11218) | `places`, builder |
//! | C21, C22 | mount options, cache ids, writes to the context | builder |
//! | C23 | mounts that nobody asked for (CVE-2024-9341) | `places` |
//! | C24 | the builder's environment (CVE-2021-3602) | `descriptors`, builder |
//! | C25 | a writable tree of control groups (CVE-2023-25809) | `rights` |
//! | C26 | AF_ALG, with 32-bit programs going on (CVE-2026-31431) | `kernel`, `probe` |
//! | C27 | mount and namespace calls of kernels with holes (CVE-2023-0386, -2640, -32629, -2021-3493, -2022-0185) | `rights`, `probe` |
//! | C28 | typing into the terminal (CVE-2017-5226) | `kernel` |
//! | C29 | files that stay open past the end (CVE-2020-15257, CVE-2024-27297, CVE-2026-39860) | `outlive`, builder |
//! | C30, C31 | permissions of the store | builder |
//! | C32 | daemons that stay | `outlive`, builder |
//! | C33 | block devices | `rights`, builder |
//! | C34 | layers changed below kiln (CVE-2022-0847) | builder |
//!
//! Not tried, with the reason: the kernel's own holes of C26, C27 and C34 (a kernel that has them can't be had here; the calls that
//! reach them are); AF_ALG by `socketcall` of a 32-bit program (a filter can't see its arguments, and closing it broke such programs
//! when Docker did); real frontends of C06 (kiln runs none).
//!
//! `KILN_TEST_FULL=1` runs the long forms: every descriptor number, 10,000 swaps for each row.

mod descriptors;
mod kernel;
pub mod modes;
mod outlive;
mod places;
mod probe;
mod traced;
mod users;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use kiln_runner::{Mount, MountSource};

use crate::{files, image, mounts, process, rights};

/// Whether the long forms are wanted.
pub fn full() -> bool {
    std::env::var_os("KILN_TEST_FULL").is_some()
}

/// Every test of this module and those of others that belong to a class.
pub const TESTS: &[(&str, fn())] = &[
    ("threats::c01_forbidden_working_directories", image::forbidden_working_directories),
    ("threats::c01_every_descriptor", descriptors::c01_every_descriptor),
    ("threats::c01_three_descriptors", process::descriptors),
    ("threats::c02_subpaths_stay_inside", mounts::subpaths_stay_inside),
    ("threats::c02_subpath_swapped_under_two_steps", places::c02_subpath_swapped_under_two_steps),
    ("threats::c03_stubs_that_the_command_touched", files::stubs_that_the_command_touched),
    ("threats::c03_every_parent_of_a_stub_replaced", places::c03_every_parent_of_a_stub_replaced),
    ("threats::c08_c10_c12_standard_places", image::standard_places_that_are_no_directories),
    ("threats::c08_masks_are_kilns_own", places::c08_masks_are_kilns_own),
    ("threats::c09_c14_nothing_of_the_image_is_run_or_written_by", traced::c09_c14_set_up_writes_no_proc_and_runs_nothing),
    ("threats::c10_places_as_links_files_and_loops", places::c10_places_as_links_files_and_loops),
    ("threats::c11_targets_behind_links", mounts::targets_behind_links),
    ("threats::c11_mount_points_raced", places::c11_mount_points_raced),
    ("threats::c12_proc_is_the_real_one", places::c12_proc_is_the_real_one),
    ("threats::c13_own_program", rights::own_program),
    ("threats::c13_program_is_not_overwritten", descriptors::c13_program_is_not_overwritten),
    ("threats::c15_capabilities", rights::capabilities),
    ("threats::c16_supplementary_groups", image::users),
    ("threats::c17_unknown_users", image::unknown_users),
    ("threats::c17_numbers_are_never_root", users::c17_numbers_are_never_root),
    ("threats::c18_c19_hostile_passwd_files", image::hostile_passwd_files),
    ("threats::c18_large_files_are_bounded", users::c18_large_files_are_bounded),
    ("threats::c19_odd_files_end_at_once", users::c19_odd_files_end_at_once),
    ("threats::c20_source_swapped_for_a_link", places::c20_source_swapped_for_a_link),
    ("threats::c22_overlay_binds_write_elsewhere", mounts::overlays),
    ("threats::c23_no_other_mounts", places::c23_no_other_mounts),
    ("threats::c24_environment_is_exact", process::environment_is_exact),
    ("threats::c24_no_process_shows_the_environment", descriptors::c24_no_process_shows_the_environment),
    ("threats::c25_control_groups_are_hidden", rights::control_groups_are_hidden),
    ("threats::c26_thirty_two_bit_network", kernel::c26_thirty_two_bit_network),
    ("threats::c27_system_calls", rights::system_calls),
    ("threats::c27_thirty_two_bit_programs", rights::thirty_two_bit_programs),
    ("threats::c26_c27_the_published_table", probe::the_published_table),
    ("threats::c28_no_controlling_terminal", process::no_controlling_terminal),
    ("threats::c28_typing_is_refused", kernel::c28_typing_is_refused),
    ("threats::c29_a_file_handed_out_spoils_the_step", outlive::c29_a_file_handed_out_spoils_the_step),
    ("threats::c32_ten_daemons_after_the_step", outlive::c32_ten_daemons_after_the_step),
    ("threats::c32_ten_daemons_after_a_kill", outlive::c32_ten_daemons_after_a_kill),
    ("threats::c33_device_nodes", rights::device_nodes),
    ("threats::c33_disks_cannot_be_opened", kernel::c33_disks_cannot_be_opened),
    ("threats::f02_only_the_init_is_killed", outlive::f02_only_the_init_is_killed),
    ("threats::f25_bombs", outlive::f25_bombs),
];

fn probe_sources() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("testdata/probe")
}

/// Compiles one of `testdata/probe`; `None`, said on the test's output, where there is no compiler for it.
pub fn compiled(test: &str, source: &str, flags: &[&str]) -> Option<PathBuf> {
    static FOLDER: OnceLock<tempfile::TempDir> = OnceLock::new();
    let folder = FOLDER.get_or_init(|| tempfile::Builder::new().prefix("kiln-probe-").tempdir().unwrap());
    // One name a test, for tests run side by side.
    let program = folder.path().join(format!("{test}-{source}"));
    let output = Command::new("gcc").args(flags).arg("-O1").arg("-o").arg(&program).arg(probe_sources().join(source)).output();
    match output {
        Ok(output) if output.status.success() => Some(program),
        Ok(output) => {
            println!(
                "skipped: threats::{test}: gcc: {}",
                String::from_utf8_lossy(&output.stderr).lines().next().unwrap_or_default()
            );
            None
        }
        Err(error) => {
            println!("skipped: threats::{test}: gcc: {error}");
            None
        }
    }
}

/// The program of small deeds.
pub fn deeds(test: &str) -> Option<PathBuf> {
    compiled(test, "deeds.c", &["-static", "-pthread"])
}

/// A read-only mount of a program.
pub fn program(target: &str, path: &Path) -> Mount {
    Mount { target: target.into(), source: MountSource::Bind { path: path.to_owned() }, subpath: "".into(), readonly: true }
}

/// What is below a folder, with types, modes and contents: equal texts are equal trees.
pub fn tree(folder: &Path) -> String {
    let script = "find . -mindepth 1 -printf '%p %y %m %U:%G %l %T@\\n' | sort; find . -type f | sort | xargs -r sha256sum";
    let output = Command::new("sh").args(["-c", script]).current_dir(folder).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}
