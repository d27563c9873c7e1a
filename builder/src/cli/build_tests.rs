//! Rows of what was typed after `kiln build` and what is meant by it, or why it is refused.

use kiln::ops::agent::Agent;
use kiln::request::{ArchiveFormat, ContextSource, Destination, DockerfileSource, LayoutImage, NamedSource};

use super::*;
use crate::cli::args::{Command, parse};

fn typed(line: &str) -> BuildArgs {
    let words = ["kiln", "build"].into_iter().chain(line.split_whitespace()).map(OsString::from);
    match parse(words).unwrap().command {
        Command::Build(args) => *args,
        other => panic!("{other:?}"),
    }
}

fn meant(line: &str, environment: &[(&str, &str)], stdin: &[u8]) -> Result<BuildRequest, String> {
    request(&typed(line), &Environment::given(environment), &mut &*stdin, SystemTime::UNIX_EPOCH).map_err(|failure| {
        assert_eq!(failure.exit(), if matches!(failure, Failure::Context { .. }) { Exit::Failed } else { Exit::Usage }, "{line}");
        failure.to_string()
    })
}

#[test]
fn secrets_and_limits() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    std::fs::write(&file, "from a file\n").unwrap();
    let file = file.display().to_string();
    let environment: &[(&str, &str)] = &[("VAR", "from a variable"), ("EMPTY", "")];
    let rows = [
        (format!("id=a,src={file}"), "a", "from a file\n"),
        (format!("type=file,id=a,source={file}"), "a", "from a file\n"),
        (format!("id={file}"), file.as_str(), "from a file\n"),
        ("id=a,env=VAR".to_owned(), "a", "from a variable"),
        ("id=a,type=env,src=VAR".to_owned(), "a", "from a variable"),
        ("id=VAR".to_owned(), "VAR", "from a variable"),
        ("id=VAR,type=env".to_owned(), "VAR", "from a variable"),
        ("id=EMPTY".to_owned(), "EMPTY", ""),
        ("id=a,env=UNSET".to_owned(), "a", ""),
    ];
    for (spec, id, want) in rows {
        let request = meant(&format!("--secret {spec} /"), environment, b"").unwrap();
        let got = request.grants.secrets.get(id).unwrap_or_else(|| panic!("{spec}: {request:?}"));
        assert_eq!(got.reveal(), want.as_bytes(), "{spec}");
        assert!(!format!("{request:?}").contains("from a"), "{spec}");
    }
    let limits =
        meant("--ulimit nofile=1:2 --ulimit core=-1 --ulimit nproc=5 --allow security.insecure,network.host /", &[], b"");
    let limits = limits.unwrap();
    let found: Vec<_> = limits.limits.iter().map(|limit| (limit.resource.name(), limit.soft, limit.hard)).collect();
    assert_eq!(found, [("nofile", Some(1), Some(2)), ("core", None, None), ("nproc", Some(5), Some(5))]);
    assert!(limits.grants.insecure);
    let socket = folder.path().join("agent");
    let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let named = socket.display().to_string();
    let request = meant(&format!("--ssh default --ssh git={named} /"), &[("SSH_AUTH_SOCK", &named)], b"").unwrap();
    assert_eq!(
        request.grants.agents.into_iter().collect::<Vec<_>>(),
        [("default".into(), Agent::Socket(socket.clone())), ("git".into(), Agent::Socket(socket))]
    );
}

fn archive(request: &BuildRequest) -> Vec<(ArchiveFormat, Destination)> {
    let archive = |output: &Output| match output {
        Output::Archive { format, dest, .. } => Some((*format, dest.clone())),
        _ => None,
    };
    request.outputs.iter().filter_map(archive).collect()
}

/// The names of what is pushed.
fn pushed(request: &BuildRequest) -> Vec<String> {
    let pushed = request.outputs.iter().filter(|output| matches!(output, Output::Image { push: true, .. }));
    let names = pushed.filter_map(Output::options).flat_map(|options| &options.names);
    names.map(|name| name.reference.familiar()).collect()
}

/// What is typed, the environment, and what must hold of the request.
type Row = (&'static str, &'static [(&'static str, &'static str)], Box<dyn Fn(&BuildRequest) -> bool>);

#[test]
fn flags_become_a_request() {
    let pairs = |list: &[(&str, &str)]| list.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect::<Vec<_>>();
    let rows: Vec<Row> = vec![
        ("/", &[], Box::new(|r| r.context == ContextSource::Folder("/".into()) && r.dockerfile == DockerfileSource::Default)),
        ("-f x/Dockerfile /", &[], Box::new(|r| r.dockerfile == DockerfileSource::Path("x/Dockerfile".into()))),
        ("-f - /", &[], Box::new(|r| r.dockerfile == DockerfileSource::Bytes(b"FROM scratch".to_vec()))),
        ("-", &[], Box::new(|r| r.context == ContextSource::Empty && matches!(r.dockerfile, DockerfileSource::Bytes(_)))),
        ("-t app -t app:latest -t docker.io/library/app /", &[], Box::new(|r| r.tags.len() == 1)),
        (
            "--build-arg A=1 --build-arg B --build-arg C --build-arg A=2 --build-arg D= /",
            &[("B", "b"), ("D", "d")],
            Box::new(move |r| r.language.build_args == pairs(&[("A", "2"), ("B", "b"), ("D", "")])),
        ),
        ("--label a --label b=c=d /", &[], Box::new(move |r| r.language.labels == pairs(&[("a", ""), ("b", "c=d")]))),
        ("/", &[("SOURCE_DATE_EPOCH", "7")], Box::new(|r| r.clock == SystemTime::UNIX_EPOCH + Duration::from_secs(7))),
        (
            "/",
            &[("https_proxy", "http://p:1")],
            Box::new(move |r| {
                r.language.proxy_args == pairs(&[("https_proxy", "http://p:1")]) && r.language.build_args.is_empty()
            }),
        ),
        ("--add-host db:10.0.0.5 --add-host six=[::1] --add-host h:host-gateway /", &[], {
            Box::new(move |r| r.extra_hosts == pairs(&[("db", "10.0.0.5"), ("six", "::1"), ("h", "host-gateway")]))
        }),
        (
            "--network none --shm-size 64m /",
            &[],
            Box::new(|r| r.language.network == NetworkMode::None && r.shm_size == Some(64 << 20)),
        ),
        ("/", &[("DOCKER_DEFAULT_PLATFORM", "linux/arm64")], Box::new(|r| r.platforms[0].architecture == "arm64")),
        (
            "--platform linux/amd64 /",
            &[("DOCKER_DEFAULT_PLATFORM", "linux/arm64")],
            Box::new(|r| r.platforms[0].architecture == "amd64"),
        ),
        (
            "--no-cache-filter a,b --pull /",
            &[],
            Box::new(|r| !r.caching.disabled && r.caching.disabled_stages == ["a", "b"] && r.caching.pull),
        ),
        ("--no-cache /", &[], Box::new(|r| r.caching.disabled && !r.caching.pull)),
        ("--shm-size 0 /", &[], Box::new(|r| r.shm_size.is_none())),
        ("--platform local /", &[("DOCKER_DEFAULT_PLATFORM", "linux/s390x")], {
            Box::new(|r| r.platforms == [Platform::host()])
        }),
        ("--add-host a=10.0.0.1,b:10.0.0.2 /", &[], {
            Box::new(move |r| r.extra_hosts == pairs(&[("a", "10.0.0.1"), ("b", "10.0.0.2")]))
        }),
        ("-o type=oci,dest=x.tar /", &[], Box::new(|r| archive(r) == [(ArchiveFormat::Oci, Destination::File("x.tar".into()))])),
        ("-o type=docker,dest=- /", &[], Box::new(|r| archive(r) == [(ArchiveFormat::Docker, Destination::Stdout)])),
        ("-o type=docker --load /", &[], Box::new(|r| matches!(r.outputs[..], [Output::Daemon { .. }]))),
        ("-o type=image,\"name=a,b\",push=true /", &[], Box::new(|r| r.tags.is_empty() && pushed(r) == ["a:latest", "b:latest"])),
        ("-t a -o type=image,name=b --push /", &[], Box::new(|r| r.tags.len() == 1 && pushed(r) == ["a:latest"])),
        ("--provenance=false --sbom=false --allow network.host --call build /", &[], Box::new(|r| r.outputs.is_empty())),
        ("-o type=registry -t a /", &[], Box::new(|r| pushed(r) == ["a:latest"])),
    ];
    for (line, environment, holds) in rows {
        let request = meant(line, environment, b"FROM scratch").unwrap_or_else(|error| panic!("{line}: {error}"));
        assert!(holds(&request), "{line}: {request:#?}");
    }
}

#[test]
fn mistakes() {
    let rows = [
        ("/nonexistent", "unable to prepare context: path \"/nonexistent\" not found"),
        ("/etc/passwd", "unable to prepare context: path \"/etc/passwd\" can't be used"),
        ("https://u:secret@h/a.git#-x", "invalid git address `https://h/a.git#-x`"),
        ("git@h:a.git#main:..", "invalid git address `git@h:a.git#main:..`"),
        ("--build-context a /", "invalid --build-context `a`: it has no value"),
        ("--build-context A_:b=/ /", "invalid --build-context `A_:b=/`: no stage or image can have this name"),
        ("--build-context a=docker-image://UP /", "invalid --build-context `a=docker-image://UP`"),
        ("--build-context a=target:x /", "invalid --build-context `a=target:x`: `x` would be a target of a bake file"),
        (
            "--build-context a::linux/amd64=/ /",
            "invalid --build-context `a::linux/amd64=/`: no stage or image can have this name",
        ),
        ("--build-context a=https://tok@h/a.git#.. /", "invalid git address `https://h/a.git#..`"),
        ("-t UPPER /", "invalid tag `UPPER`"),
        ("--push /", "a name is needed to push the image"),
        ("--network bridge /", "network mode `bridge` is not supported"),
        (
            "--platform linux/amd64,linux/arm64 -o type=docker,dest=a /",
            "docker exporter does not currently support exporting manifest lists",
        ),
        (
            "--platform linux/amd64,linux/arm64 --push -t a --annotation manifest[linux/s390x]:a=b /",
            "invalid annotation: no platform linux/s390x found in source",
        ),
        ("--shm-size lots /", "invalid size `lots` for --shm-size"),
        ("--add-host db /", "invalid --add-host `db`"),
        ("--add-host db:name /", "invalid --add-host `db:name`"),
        ("-o type=oci,dest=a,compression=xz /", "unsupported layer compression type `xz` in output"),
        ("-o type=oci,dest=a,compression-level=x /", "non-integer value `x` specified for compression-level"),
        ("-o type=oci,dest=a,colour=red /", "unknown key `colour` in output"),
        ("-o type=oci,dest=a,source-date-epoch=soon /", "invalid source-date-epoch `soon` in output"),
        ("-o type=tar,dest=a,source-date-epoch=253402300800 /", "invalid source-date-epoch `253402300800` in output"),
        ("-o type=image,push=maybe /", "non-bool value `maybe` specified for push"),
        ("-o type=image,dest=x /", "output `type=image,dest=x` can't have a dest"),
        ("-o type=image,push /", "invalid value `push` in output"),
        ("-o name=x,dest=y /", "type is required for output `name=x,dest=y`"),
        ("-o type=oci,tar=false /", "output `type=oci,tar=false` needs a folder"),
        ("-o type=oci,dest=/tmp /", "destination /tmp of output `type=oci,dest=/tmp` is a folder"),
        ("-o type=image,annotation-shelf.a=b /", "invalid annotation key `annotation-shelf.a`"),
        ("-o type=image,annotation-index.a=b /", "index annotations not supported for single platform export"),
        ("-o type=image,name=h.io/a:1,push=true,push-by-digest=true /", "can't push tagged ref h.io/a:1 by digest"),
        ("-o type=nope /", "unknown output type `nope`"),
        ("-o type=oci -o type=docker,dest=- /", "two outputs have the same destination"),
        ("--secret src=x /", "a --secret has no id"),
        ("--secret canary /", "invalid --secret: a field is no key=value pair"),
        ("--secret id=x,value=canary /", "unexpected key `value` in --secret"),
        ("--secret id=x,type=vault /", "unsupported type `vault` of --secret"),
        ("--secret id=x,src=/nonexistent /", "cannot read the secret /nonexistent: No such file"),
        ("--secret id=/nonexistent /", "cannot read the secret /nonexistent: No such file"),
        ("--secret id=x,src=/dev/zero /", "the secret /dev/zero is too large"),
        ("--ssh default /", "--ssh default: there is no ssh agent"),
        ("--ssh default=/nonexistent /", "--ssh default: cannot use /nonexistent: No such file"),
        ("--ssh git=/etc/passwd /", "--ssh git: cannot use /etc/passwd: it holds no private key"),
        ("--ssh git=/a,/b /", "--ssh git: cannot use /a: No such file"),
        ("--ulimit nofile /", "invalid --ulimit `nofile`: it has no value"),
        ("--ulimit files=1 /", "invalid --ulimit `files=1`: there is no such limit"),
        ("--ulimit nofile=many /", "invalid --ulimit `nofile=many`: a limit is a number"),
        ("--ulimit nofile=2:1 /", "invalid --ulimit `nofile=2:1`: the soft limit is above the hard one"),
        ("--provenance=max /", "invalid attestation `type=provenance,max`"),
        (
            "--allow device /",
            "`--allow device` is not supported: it is one of network.host, security.insecure, buildx.local.delete",
        ),
        ("-f x -", "cannot use `-f x` when the Dockerfile comes from standard input"),
        ("--build-arg =x /", "invalid build argument `=x`"),
        ("--build-arg= /", "invalid build argument ``: it has no name"),
        ("--label =x /", "invalid label `=x`: it has no name"),
        ("--no-cache --no-cache-filter a /", "--no-cache and --no-cache-filter cannot currently be used together"),
        ("--platform bogus /", "invalid platform `bogus`"),
        ("--annotation a /", "parse annotations: invalid annotation \"a\", expected key=value"),
        ("--add-host a:1.2.3.4,b /", "invalid --add-host `b`"),
        ("--build-arg SOURCE_DATE_EPOCH=-1 /", "invalid SOURCE_DATE_EPOCH `-1`"),
        ("--build-arg SOURCE_DATE_EPOCH=253402300800 /", "invalid SOURCE_DATE_EPOCH `253402300800`"),
        ("--build-arg SOURCE_DATE_EPOCH=18446744073709551615 /", "invalid SOURCE_DATE_EPOCH `18446744073709551615`"),
    ];
    let mut wrong = Vec::new();
    for (line, want) in rows {
        let got = meant(line, &[], b"FROM scratch").map(|_| ()).err();
        if !got.as_ref().is_some_and(|got| got.starts_with(want)) {
            wrong.push((line, got));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn contexts() {
    let git = |url: &str| ContextSource::Git(url.to_owned());
    let http = |url: &str| ContextSource::Http(url.to_owned());
    let inside = |name: &str| DockerfileSource::InContext(name.into());
    let tar = [vec![b'a'; 257], b"ustar".to_vec(), vec![0; 2000]].concat();
    let archive = || ContextSource::Archive { start: tar[..512].to_vec() };
    let text = || DockerfileSource::Bytes(b"FROM scratch".to_vec());
    let rows: [(&str, &[u8], ContextSource, DockerfileSource); 12] = [
        ("-", &tar, archive(), DockerfileSource::Default),
        ("-f sub/D -", &tar, archive(), inside("sub/D")),
        ("-", b"FROM scratch", ContextSource::Empty, text()),
        ("-f - /", b"FROM scratch", ContextSource::Folder("/".into()), text()),
        ("-f - https://h/a.git", b"FROM scratch", git("https://h/a.git"), text()),
        ("-f sub/D https://h/a.git#v1:x", b"", git("https://h/a.git#v1:x"), inside("sub/D")),
        ("git@h:a/b.git", b"", git("git@h:a/b.git"), DockerfileSource::Default),
        ("ssh://git@h/a", b"", git("ssh://git@h/a"), DockerfileSource::Default),
        ("git://h/a?branch=b", b"", git("git://h/a?branch=b"), DockerfileSource::Default),
        ("github.com/a/b", b"", git("github.com/a/b"), DockerfileSource::Default),
        ("https://h/a.tar.gz", b"", http("https://h/a.tar.gz"), DockerfileSource::Default),
        ("-f https://h/D /", b"", ContextSource::Folder("/".into()), DockerfileSource::Http("https://h/D".into())),
    ];
    for (line, stdin, context, dockerfile) in rows {
        let request = meant(line, &[], stdin).unwrap_or_else(|error| panic!("{line}: {error}"));
        assert_eq!((request.context, request.dockerfile), (context, dockerfile), "{line}");
    }
    let long = [b"FROM scratch\n".to_vec(), b"# comment\n".repeat(100)].concat();
    assert_eq!(meant("-", &[], &long).unwrap().dockerfile, DockerfileSource::Bytes(long));
}

#[test]
fn named_contexts() {
    let files = |source| NamedSource::Files(source);
    let layout = |image| NamedSource::Layout { folder: "/".into(), image };
    let digest = format!("sha256:{}", "a".repeat(64));
    let rows = [
        ("a=/", "a", files(ContextSource::Folder("/".into()))),
        ("docker.io/library/alpine:latest=/", "alpine", files(ContextSource::Folder("/".into()))),
        ("alpine:3=docker-image://busybox:1", "alpine:3", NamedSource::Image(Reference::parse("busybox:1").unwrap())),
        ("a=https://h/a.git#v1", "a", files(ContextSource::Git("https://h/a.git#v1".into()))),
        ("a=https://h/a.tar", "a", files(ContextSource::Http("https://h/a.tar".into()))),
        ("a=oci-layout:///", "a", layout(LayoutImage::Default)),
        ("a=oci-layout:///:v1", "a", layout(LayoutImage::Tag("v1".into()))),
        (&format!("a=oci-layout:///@{digest}"), "a", layout(LayoutImage::Digest(digest.parse().unwrap()))),
    ];
    for (text, name, source) in rows {
        let request = meant(&format!("--build-context {text} /"), &[], b"").unwrap_or_else(|error| panic!("{text}: {error}"));
        assert_eq!(request.named_contexts, [(name.to_owned(), source)], "{text}");
    }
    let request = meant("--build-context a=/ --build-context b=/ --build-context a=/tmp /", &[], b"").unwrap();
    assert_eq!(request.named_contexts.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["b", "a"]);
}

#[test]
fn files_appear_whole() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("id");
    for text in ["one", "two"] {
        write_atomically(&path, text.as_bytes()).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
    }
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    assert!(write_atomically(&folder.path().join("no/id"), b"x").is_err());
}
