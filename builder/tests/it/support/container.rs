//! Containers around kiln: an image that kiln built, with the program under test in it, run by `runc` or `dockerd` as they
//! run anybody's.

use std::ffi::OsString;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::LazyLock;

use serde_json::{Value, json};
use tempfile::TempDir;

use super::archive::Image;
use super::home::{Home, Outcome, finish, program};
use super::lab;

/// The capabilities that docker and podman leave a container's root.
const CAPABILITIES: [&str; 14] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_RAW",
    "CAP_SYS_CHROOT",
    "CAP_MKNOD",
    "CAP_AUDIT_WRITE",
    "CAP_SETFCAP",
];

/// The profile that podman uses, as Debian's packages bring it: unshare and mount are left to whoever has user namespaces.
pub(crate) const LENIENT: &str = "/usr/share/containers/seccomp.json";

/// The name of kiln's image in dockerd.
const NAME: &str = "kiln-outer:1";

/// A container that sees the home's folder under its own name, and the host's network.
#[derive(Debug)]
pub(crate) enum Container<'a> {
    /// Started by runc, with its bundle and its state in this folder, which the container doesn't see: a second `/proc` without
    /// masks lies there.
    Runc {
        /// The folder.
        bundle: TempDir,
        /// Whether the system calls of namespaces and mounts are refused, as containerd and docker do.
        strict: bool,
    },
    /// Started by dockerd, with more arguments of `docker run`.
    Docker(&'static lab::Dockerd, &'a [&'a str]),
}

impl Container<'_> {
    /// A container as podman would have it: root with the usual capabilities, podman's seccomp profile, runc's masks over
    /// `/proc`. Or why there is none.
    pub(crate) fn lenient() -> Result<Container<'static>, String> {
        Container::runc(false)
    }

    /// The same with the profile of docker, containerd and thus of a Kubernetes pod with `RuntimeDefault`.
    pub(crate) fn strict() -> Result<Container<'static>, String> {
        Container::runc(true)
    }

    fn runc(strict: bool) -> Result<Container<'static>, String> {
        for needed in ["/usr/sbin/runc", LENIENT] {
            if !Path::new(needed).exists() {
                return Err(format!("there is no {needed}"));
            }
        }
        let bundle = lab::temp_dir();
        unpack(&OUTER, &bundle.path().join("rootfs"));
        Ok(Container::Runc { bundle, strict })
    }

    /// The default container of docker, plus `more`; or why there is none.
    pub(crate) fn docker<'a>(more: &'a [&'a str]) -> Result<Container<'a>, String> {
        static LOADED: LazyLock<Result<&'static lab::Dockerd, String>> = LazyLock::new(|| {
            let dockerd = lab::dockerd()?;
            let home = Home::offline();
            let archive = home.path("outer.tar");
            fs::write(&archive, &*OUTER).expect("an archive can be written");
            finish(dockerd.docker().arg("load").arg("-i").arg(&archive)).ok();
            Ok(dockerd)
        });
        LOADED.clone().map(|dockerd| Container::Docker(dockerd, more))
    }

    /// Runs the program of the image, or kiln, in a new container.
    pub(crate) fn run(&self, home: &Home, args: impl IntoIterator<Item = impl Into<OsString>>) -> Outcome {
        finish(&mut self.command(home, args))
    }

    fn command(&self, home: &Home, args: impl IntoIterator<Item = impl Into<OsString>>) -> Command {
        let args: Vec<OsString> = args.into_iter().map(Into::into).collect();
        let folder = home.path("");
        let folder = folder.to_str().expect("a temporary folder's name is text").trim_end_matches('/');
        let environment = [
            "PATH=/usr/local/bin:/bin".to_owned(),
            format!("HOME={folder}"),
            format!("KILN_ROOT={folder}/store"),
            format!("XDG_CONFIG_HOME={folder}/config"),
            format!("TMPDIR={folder}"),
            "NO_COLOR=1".to_owned(),
        ];
        match self {
            Container::Runc { bundle, strict } => {
                let config = specification(folder, &environment, &args, *strict);
                fs::write(bundle.path().join("config.json"), config.to_string()).expect("a file can be written");
                let mut command = Command::new("/usr/sbin/runc");
                command.arg("--root").arg(bundle.path().join("state")).arg("run").arg("--bundle").arg(bundle.path());
                command.arg(format!("kiln-{}", folder.rsplit('-').next().unwrap_or_default()));
                command.stdin(Stdio::null());
                command
            }
            Container::Docker(dockerd, more) => {
                let mut command = dockerd.docker();
                command.args(["run", "--rm", "--network=host", "-v"]).arg(format!("{folder}:{folder}")).arg("-w").arg(folder);
                command.args(environment.iter().flat_map(|variable| ["-e", variable])).args(*more).arg(NAME).args(args);
                command
            }
        }
    }
}

/// An archive of the image: busybox, the kiln under test, and the libraries that it needs if it isn't static.
static OUTER: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let home = Home::new();
    let mut dockerfile = "FROM busybox\nCOPY rootfs /\nENTRYPOINT []\nCMD [\"kiln\", \"version\"]\n".to_owned();
    let listed = Command::new("ldd").arg(program()).output().expect("ldd runs");
    let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
    let libraries = listed.lines().filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')));
    let put = |from: &Path, to: &str| {
        let to = home.path("outer/rootfs").join(to.trim_start_matches('/'));
        fs::create_dir_all(to.parent().expect("a file lies in a folder")).expect("folders can be made");
        fs::copy(from, to).expect("a library can be copied");
    };
    libraries.for_each(|library| put(Path::new(library), library));
    put(&program(), "/usr/local/bin/kiln");
    dockerfile.insert_str(0, "# What a container around kiln needs.\n");
    let context = home.context("outer", &dockerfile);
    let archive = home.path("outer.tar");
    let output = format!("type=docker,dest={}", archive.display());
    home.run(["build", "-t", NAME, "--output", &output, context.to_str().expect("a name that is text")]).ok();
    fs::read(archive).expect("kiln wrote the archive")
});

/// Makes the image's root file system. None of its layers deletes anything.
fn unpack(archive: &[u8], to: &Path) {
    fs::create_dir_all(to).expect("folders can be made");
    let file = to.with_extension("tar");
    fs::write(&file, archive).expect("an archive can be written");
    for layer in Image::read(&file).expect("kiln writes archives").layers {
        fs::write(&file, layer).expect("a layer can be written");
        finish(Command::new("tar").arg("-C").arg(to).arg("-xpf").arg(&file)).ok();
    }
    fs::remove_file(&file).expect("a file can be removed");
    for name in ["etc/resolv.conf", "etc/hosts"] {
        fs::copy(Path::new("/").join(name), to.join(name)).expect("the host has a resolver");
    }
}

/// A `config.json` as podman writes it: the same masks, mounts and rights as `runc spec` has, and a seccomp profile.
fn specification(folder: &str, environment: &[String], args: &[OsString], strict: bool) -> Value {
    let args: Vec<&str> = args.iter().map(|arg| arg.to_str().expect("an argument that is text")).collect();
    let capabilities: Vec<&str> = CAPABILITIES.into();
    let mount = |target: &str, kind: &str, source: &str, options: &[&str]| json!({"destination": target, "type": kind, "source": source, "options": options});
    json!({
        "ociVersion": "1.0.2",
        "process": {
            "terminal": false, "user": {"uid": 0, "gid": 0}, "args": args, "env": environment, "cwd": folder,
            "capabilities": {"bounding": capabilities, "effective": capabilities, "permitted": capabilities},
            "noNewPrivileges": false,
        },
        "root": {"path": "rootfs", "readonly": false},
        "hostname": "outer",
        "mounts": [
            mount("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]),
            mount("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
            mount("/dev/pts", "devpts", "devpts", &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]),
            mount("/dev/shm", "tmpfs", "shm", &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]),
            mount("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
            mount("/sys", "bind", "/sys", &["bind", "nosuid", "noexec", "nodev", "ro"]),
            mount("/sys/fs/cgroup", "cgroup", "cgroup", &["nosuid", "noexec", "nodev", "relatime", "ro"]),
            mount(folder, "bind", folder, &["rbind", "rw"]),
        ],
        "linux": {
            "namespaces": [{"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}],
            "maskedPaths": [
                "/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list",
                "/proc/timer_stats", "/proc/sched_debug", "/sys/firmware", "/proc/scsi",
            ],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
            "seccomp": seccomp(&serde_json::from_slice(&fs::read(LENIENT).expect("the profile")).expect("a profile is JSON"), strict),
        },
    })
}

/// What docker's profile allows only with CAP_SYS_ADMIN, or not at all, and podman's allows.
const STRICT: [&str; 26] = [
    "add_key",
    "bpf",
    "clone",
    "clone3",
    "fanotify_init",
    "fsconfig",
    "fsmount",
    "fsopen",
    "fspick",
    "keyctl",
    "lookup_dcookie",
    "mount",
    "mount_setattr",
    "move_mount",
    "open_tree",
    "perf_event_open",
    "pivot_root",
    "quotactl",
    "request_key",
    "setdomainname",
    "sethostname",
    "setns",
    "syslog",
    "umount",
    "umount2",
    "unshare",
];

/// The profile for a container with `CAPABILITIES` on this processor, in the words of the runtime specification.
fn seccomp(profile: &Value, strict: bool) -> Value {
    let texts = |value: &Value| -> Vec<String> {
        value.as_array().into_iter().flatten().filter_map(|text| text.as_str().map(str::to_owned)).collect()
    };
    let ours = |names: &[String]| names.iter().any(|name| name == "amd64" || name == "x86" || name == "x32");
    let held = |names: &[String]| names.iter().all(|name| CAPABILITIES.contains(&name.as_str()));
    let applies = |rule: &&Value| {
        let (with, without) = (&rule["includes"], &rule["excludes"]);
        let [with_caps, with_arches] = [texts(&with["caps"]), texts(&with["arches"])];
        let [without_caps, without_arches] = [texts(&without["caps"]), texts(&without["arches"])];
        let excluded = ours(&without_arches) || (!without_caps.is_empty() && held(&without_caps));
        held(&with_caps) && (with_arches.is_empty() || ours(&with_arches)) && !excluded
    };
    let mut rules: Vec<Value> = profile["syscalls"]
        .as_array()
        .into_iter()
        .flatten()
        .filter(applies)
        .map(|rule| {
            let kept = ["names", "action", "errnoRet", "args"].into_iter().filter(|key| !rule[key].is_null());
            kept.map(|key| (key.to_owned(), rule[key].clone())).collect::<serde_json::Map<_, _>>().into()
        })
        .collect();
    if strict {
        for rule in &mut rules {
            rule["names"].as_array_mut().expect("a rule has names").retain(|name| !STRICT.iter().any(|strict| name == strict));
        }
        rules.retain(|rule| rule["names"] != json!([]));
        // Every CLONE_NEW* flag apart from CLONE_NEWTIME, whose bit means something else here. clone3 has its flags in memory,
        // where no filter sees them: programs go on with clone when there is none.
        let plain = json!([{"index": 0, "value": 0x7e02_0000, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"}]);
        rules.push(json!({"names": ["clone"], "action": "SCMP_ACT_ALLOW", "args": plain}));
        rules.push(json!({"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38}));
    }
    let errno = if strict { json!(1) } else { profile["defaultErrnoRet"].clone() };
    json!({
        "defaultAction": profile["defaultAction"], "defaultErrnoRet": errno,
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"], "syscalls": rules,
    })
}
