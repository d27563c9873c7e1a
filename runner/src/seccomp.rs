//! Which system calls a sandboxed command may make: hides the filter program.
//!
//! An allow-list (Docker's), as a binary search over ranges of numbers: a linear list would cost 350 comparisons a call where the
//! kernel can't cache the answer. 32-bit x86 programs have their own numbers and keep working; x32 (64-bit calls with 32-bit
//! pointers, behind the same entry point) does not exist here. Numbers that are newer than the profile answer ENOSYS, so that a C
//! library falls back to what it used before.

mod notified;
mod table;

use crate::sys::Instruction;
pub(crate) use notified::{Call, How, Kind, What, call};
use notified::{When, when};
use table::{NEWEST, Rule, TABLE};

/// What a filter is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Purpose {
    /// Only the calls of the list may be made.
    pub(crate) listed: bool,
    /// The supervisor is told of what it has to record.
    pub(crate) recorded: bool,
    /// It is also asked what files are, so as to tell the recorded owners.
    pub(crate) shown: bool,
}

/// The architecture of kiln itself.
#[cfg(target_arch = "x86_64")]
pub(crate) const NATIVE: u32 = AUDIT_ARCH_X86_64;
#[cfg(target_arch = "aarch64")]
pub(crate) const NATIVE: u32 = AUDIT_ARCH_AARCH64;

/// The whole filter for this architecture.
pub(crate) fn program(purpose: Purpose) -> Vec<Instruction> {
    program_for(ARCHITECTURES, purpose)
}

#[cfg(target_arch = "x86_64")]
const ARCHITECTURES: &[Architecture] = &[
    Architecture { id: AUDIT_ARCH_X86_64, column: |row| row.2, closed_from: Some(X32_BIT) },
    Architecture { id: AUDIT_ARCH_I386, column: |row| row.3, closed_from: None },
];
#[cfg(target_arch = "aarch64")]
const ARCHITECTURES: &[Architecture] = &[Architecture { id: AUDIT_ARCH_AARCH64, column: |row| row.4, closed_from: None }];

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
compile_error!("the system call numbers of this architecture are not in seccomp/table.rs yet");

#[cfg(target_arch = "x86_64")]
const AUDIT_ARCH_X86_64: u32 = 0xc000_003e;
#[cfg(target_arch = "x86_64")]
const AUDIT_ARCH_I386: u32 = 0x4000_0003;
#[cfg(target_arch = "aarch64")]
const AUDIT_ARCH_AARCH64: u32 = 0xc000_00b7;
/// Set in the number of every x32 call.
#[cfg(target_arch = "x86_64")]
const X32_BIT: u32 = 0x4000_0000;

/// One way into the kernel.
struct Architecture {
    id: u32,
    /// Its numbers in the table.
    column: fn(&table::Row) -> i32,
    /// Numbers from here on don't exist.
    closed_from: Option<u32>,
}

impl Architecture {
    fn of(id: u32) -> Option<&'static Architecture> {
        ARCHITECTURES.iter().find(|architecture| architecture.id == id)
    }

    /// What is done with the numbers that the table has, sorted.
    fn numbers(&self, purpose: Purpose) -> Vec<(u32, Verdict)> {
        let verdict = |row: &table::Row| match when(row.0, purpose) {
            Some(when) => Verdict::Tell(when),
            _ if purpose.listed => Verdict::Rule(row.1),
            _ => Verdict::Rule(Rule::Allow),
        };
        let numbered = |row: &table::Row| u32::try_from((self.column)(row)).ok().map(|number| (number, verdict(row)));
        let mut numbers: Vec<(u32, Verdict)> = TABLE.iter().filter_map(numbered).collect();
        numbers.sort_unstable_by_key(|(number, _)| *number);
        numbers
    }
}

/// What is to be done with a range of numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Rule(Rule),
    Tell(When),
    Deny,
}

/// Offsets in `struct seccomp_data` (linux/seccomp.h); of arguments the low half, both supported architectures being little-endian.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const ARGUMENT_0: u32 = 16;
const ARGUMENT_1: u32 = 24;

const RETURN_ALLOW: u32 = 0x7fff_0000;
const RETURN_NOTIFY: u32 = 0x7fc0_0000;
const RETURN_ERRNO: u32 = 0x0005_0000;
const EPERM: u32 = RETURN_ERRNO | libc::EPERM as u32;
const ENOSYS: u32 = RETURN_ERRNO | libc::ENOSYS as u32;

fn program_for(architectures: &[Architecture], purpose: Purpose) -> Vec<Instruction> {
    let mut program = vec![load(ARCHITECTURE)];
    for architecture in architectures {
        let mut body = vec![load(NUMBER)];
        if let Some(bit) = architecture.closed_from {
            // Who may make every call may still make none of which the supervisor would not be told.
            body.extend([jump(JGE, bit, 0, 1), ret(ENOSYS)]);
        }
        body.extend(search(&ranges(&architecture.numbers(purpose), purpose.listed)));
        // A jump reaches 255 instructions; the unconditional one reaches everywhere.
        program.extend([jump(JEQ, architecture.id, 1, 0), jump(JA, body.len() as u32, 0, 0)]);
        program.extend(body);
    }
    program.push(ret(if purpose.listed { EPERM } else { RETURN_ALLOW }));
    program
}

/// Sorted starts of ranges, each reaching to the next: first number and verdict. The last range reaches to the end.
fn ranges(numbers: &[(u32, Verdict)], listed: bool) -> Vec<(u32, Verdict)> {
    let allow = Verdict::Rule(Rule::Allow);
    let (between, newer) = if listed { (Verdict::Deny, Verdict::Rule(Rule::Missing)) } else { (allow, allow) };
    let mut ranges: Vec<(u32, Verdict)> = vec![(0, between)];
    let mut push = |start: u32, verdict: Verdict| match ranges.last_mut() {
        Some(last) if last.1 == verdict => {}
        Some(last) if last.0 == start => last.1 = verdict,
        _ => ranges.push((start, verdict)),
    };
    let mut next = 0;
    for (number, verdict) in numbers {
        if *number > next {
            push(next, between);
        }
        push(*number, *verdict);
        next = number + 1;
    }
    if next <= NEWEST {
        push(next, between);
    }
    push(NEWEST + 1, newer);
    ranges
}

fn search(ranges: &[(u32, Verdict)]) -> Vec<Instruction> {
    if let [(_, verdict)] = ranges {
        return decide(*verdict);
    }
    let (low, high) = ranges.split_at(ranges.len() / 2);
    let pivot = high[0].0;
    let (low, high) = (search(low), search(high));
    let mut code = match u8::try_from(low.len()) {
        Ok(distance) => vec![jump(JGE, pivot, distance, 0)],
        Err(_) => vec![jump(JGE, pivot, 0, 1), jump(JA, low.len() as u32, 0, 0)],
    };
    code.extend(low);
    code.extend(high);
    code
}

/// Code that ends with an answer.
fn decide(verdict: Verdict) -> Vec<Instruction> {
    match verdict {
        Verdict::Deny => vec![ret(EPERM)],
        Verdict::Tell(When::Always) => vec![ret(RETURN_NOTIFY)],
        Verdict::Tell(When::Creates(index)) => {
            // O_CREAT and __O_TMPFILE, the same on all architectures of the table.
            vec![load(ARGUMENT_0 + 8 * index), jump(JSET, 0x40_0040, 0, 1), ret(RETURN_NOTIFY), ret(RETURN_ALLOW)]
        }
        Verdict::Tell(When::Keeps) => {
            let mut code = vec![load(ARGUMENT_0)];
            let told = [libc::PR_SET_KEEPCAPS, libc::PR_SET_SECUREBITS, libc::PR_SET_TIMERSLACK].map(|option| option as u32);
            code.extend(any_of(&told, RETURN_NOTIFY, RETURN_ALLOW));
            code
        }
        Verdict::Rule(Rule::Allow) => vec![ret(RETURN_ALLOW)],
        Verdict::Rule(Rule::Missing) => vec![ret(ENOSYS)],
        Verdict::Rule(Rule::Socket) => {
            // The families that the profile lists. Not among them: AF_ALG (38; CVE-2026-31431) and AF_VSOCK (40), which
            // reaches the hypervisor.
            const DENIED: &[u32] = &[12, 19, 20, 23, 25, 34, 37, 38, 40];
            let mut code = vec![load(ARGUMENT_0), jump(JGE, 46, 0, 1), ret(EPERM)];
            code.extend(any_of(DENIED, EPERM, RETURN_ALLOW));
            code
        }
        Verdict::Rule(Rule::Personality) => {
            let mut code = vec![load(ARGUMENT_0)];
            code.extend(any_of(&[0, 8, 0x2_0000, 0x2_0008, 0xffff_ffff], RETURN_ALLOW, EPERM));
            code
        }
        Verdict::Rule(Rule::Process) => {
            // CLONE_NEWNS, CGROUP, UTS, IPC, USER, PID, NET.
            vec![load(ARGUMENT_0), jump(JSET, 0x7e02_0000, 0, 1), ret(EPERM), ret(RETURN_ALLOW)]
        }
        Verdict::Rule(Rule::Ioctl) => {
            // TIOCSTI and TIOCLINUX type into a terminal (CVE-2017-5226).
            let mut code = vec![load(ARGUMENT_1)];
            code.extend(any_of(&[0x5412, 0x541c], EPERM, RETURN_ALLOW));
            code
        }
    }
}

/// Answers `then` when the loaded word is one of `values`.
fn any_of(values: &[u32], then: u32, otherwise: u32) -> Vec<Instruction> {
    let mut code: Vec<Instruction> = values.iter().flat_map(|value| [jump(JEQ, *value, 0, 1), ret(then)]).collect();
    code.push(ret(otherwise));
    code
}

// Operations, from linux/bpf_common.h.
const LOAD_WORD: u16 = 0x20;
const RETURN: u16 = 0x06;
const JA: u16 = 0x05;
const JEQ: u16 = 0x15;
const JGE: u16 = 0x35;
const JSET: u16 = 0x45;

const fn load(offset: u32) -> Instruction {
    Instruction { code: LOAD_WORD, jt: 0, jf: 0, k: offset }
}

const fn ret(answer: u32) -> Instruction {
    Instruction { code: RETURN, jt: 0, jf: 0, k: answer }
}

const fn jump(code: u16, k: u32, jt: u8, jf: u8) -> Instruction {
    Instruction { code, jt, jf, k }
}

#[cfg(test)]
mod tests;
