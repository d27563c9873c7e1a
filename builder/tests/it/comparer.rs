//! The comparer itself finds what it is there to find: one change, one named difference.

use std::process::Command;

use serde_json::{Value, json};

use crate::support::alike;
use crate::support::archive::Image;
use crate::support::compare::{Rules, differences};
use crate::support::lab::temp_dir;
use kiln_oci::digest::Digest;

/// An image of one layer with the tree that the script makes, packed by GNU tar.
fn image(script: &str, format: &str) -> Image {
    let folder = temp_dir();
    let script = format!(
        "umask 022; mkdir r; cd r; echo f > f; ln f hard; ln -s f soft; mkdir d; echo g > d/g; mknod n c 1 3; mkfifo p; touch -d @1000 *; {script}
         cd ..; tar --format={format} --sort=name --xattrs -C r -cf layer.tar ."
    );
    let status = Command::new("sh").args(["-euc", &script]).current_dir(folder.path()).status();
    assert!(status.expect("sh runs").success(), "{script}");
    let layer = std::fs::read(folder.path().join("layer.tar")).expect("tar made the layer");
    let config = json!({
        "architecture": "amd64", "os": "linux",
        "config": {"Env": ["A=b"], "Cmd": ["c"]},
        "rootfs": {"type": "layers", "diff_ids": [Digest::of(&layer).to_string()]},
        "history": [{"created_by": "COPY --chown=1 f / # buildkit"}, {"created_by": "ENV A=b", "empty_layer": true}],
    });
    Image { config_bytes: config.to_string().into_bytes(), config, layers: vec![layer], manifest: None }
}

fn found(a: &Image, b: &Image) -> Vec<String> {
    differences(a, b, &Rules { built_after: 2000, ..Rules::default() })
}

#[test]
fn a_changed_tree_is_named() {
    let plain = image("", "posix");
    assert_eq!(found(&plain, &image("", "posix")), [] as [&str; 0]);
    assert_eq!(found(&plain, &image("", "gnu")), [] as [&str; 0], "the form of the archive doesn't matter");
    for (change, expected) in [
        ("chmod 600 d/g", "/d/g: mode: 644 != 600"),
        ("chmod u+s f", "/f: mode: 644 != 4644"),
        ("chown 5 d", "/d: owner: (0, 0) != (5, 0)"),
        ("chown 3000000:4000000 d/g", "/d/g: owner: (0, 0) != (3000000, 4000000)"),
        ("echo x > d/g", "/d/g: content"),
        ("echo longer > d/g", "/d/g: size: 2 != 7"),
        ("ln -sfn g soft", "/soft: link: f != g"),
        ("rm hard; echo f > hard; touch -d @1000 hard", "/hard: hard link of: f != hard"),
        ("rm p", "/p: only in the first (fifo)"),
        ("touch new", "/new: only in the second (file)"),
        ("rm p; mkdir p", "/p: type: fifo != directory"),
        ("rm n; mknod n c 1 5", "/n: device: (1, 3) != (1, 5)"),
        ("touch -d @1001 f", "/f: mtime: 1000 != 1001"),
        ("python3 -c 'import os; os.setxattr(\"d/g\", \"user.k\", b\"v\\xff\")'", "/d/g: xattrs: [] != [user.k=v\\xff]"),
    ] {
        let other = image(change, "posix");
        let found = found(&plain, &other);
        assert!(found.iter().any(|d| d.starts_with(expected)), "{change}: {found:#?}");
    }
}

/// The rule for modes that record owners: times and contents don't count, and one path in a thousand may differ.
#[test]
fn owners_and_rights_are_alike() {
    let plain = image("", "posix");
    let compared = |change: &str| alike::ownership(&plain, &image(change, "posix"));
    assert_eq!(compared("touch f; echo x > d/g; ln -sfn g soft"), Ok(vec![]));
    for (change, named) in [
        ("chown 5 d", "/d: 0:0:755:directory:0,0: != 5:0:755:directory:0,0:"),
        ("chown -h 0:7 soft", "/soft: 0:0:777:symlink:0,0: != 0:7:777:symlink:0,0:"),
        ("chmod u+s f", "/f: 0:0:644:file:0,0: != 0:0:4644:file:0,0:"),
        ("rm p; mkdir p", "/p: 0:0:644:fifo:0,0: != 0:0:755:directory:0,0:"),
        ("rm n; mknod n c 1 5", "/n: 0:0:644:character device:1,3: != 0:0:644:character device:1,5:"),
        ("setcap cap_chown+ep f", "/f: 0:0:644:file:0,0: != 0:0:644:file:0,0:\\x01\\x00\\x00\\x02\\x01"),
        ("rm p", "/p: 0:0:644:fifo:0,0: != nothing"),
    ] {
        let text = compared(change).expect_err(change);
        assert!(text.contains(named), "{change}: {text}");
    }
    let many = "mkdir many; cd many; touch $(seq 2000); cd ..;";
    let (x, y) = (image(many, "posix"), |count: u32| image(&format!("{many} chown 5 $(seq -f many/%g {count})"), "posix"));
    assert_eq!(alike::ownership(&x, &y(2)).map(|found| found.len()), Ok(2));
    assert!(alike::ownership(&x, &y(3)).expect_err("three of 2009").starts_with("3 of 2009 paths differ"));
}

#[test]
fn a_changed_configuration_is_named() {
    let plain = image("", "posix");
    for (pointer, value, expected) in [
        ("/config/Env/0", json!("A=c"), "config.Env"),
        ("/config/Cmd", Value::Null, "config.Cmd"),
        ("/architecture", json!("arm64"), "architecture"),
        ("/history/1/empty_layer", json!(false), "history[1]"),
        ("/history/1/created_by", json!("ENV A=c"), "history[1]"),
        ("/rootfs/diff_ids/0", json!("sha256:00"), "the second image's diff_ids"),
    ] {
        let mut other = image("", "posix");
        *other.config.pointer_mut(pointer).expect("the key is there") = value;
        let found = found(&plain, &other);
        assert!(found.iter().any(|d| d.starts_with(expected)), "{pointer}: {found:#?}");
    }
    let mut newer = image("", "posix");
    newer.config["history"][0]["created_by"] = json!("COPY f / # buildkit");
    newer.config["config"]["OnBuild"] = json!([]);
    newer.config["config"]["WorkingDir"] = json!("/");
    assert_eq!(found(&plain, &newer), [] as [&str; 0], "what only the version of the builder explains");
}

#[test]
fn whiteouts_hide_what_lies_below() {
    let layer = |script: &str| {
        let mut image = image(&format!("rm -r *; {script}"), "posix");
        image.layers.pop().expect("one layer")
    };
    let stack = |layers: Vec<Vec<u8>>| {
        let mut image = image("", "posix");
        image.config["rootfs"]["diff_ids"] = layers.iter().map(|l| json!(Digest::of(l).to_string())).collect();
        image.config["history"] = layers.iter().map(|_| json!({"created_by": "x"})).collect();
        image.layers = layers;
        image
    };
    let below = || layer("mkdir a b; touch a/1 a/2 b/3; touch c");
    for (above, merged) in [
        ("mkdir a; touch a/.wh.1", "mkdir a b; touch a/2 b/3 c"),
        ("touch .wh.a", "mkdir b; touch b/3 c"),
        ("mkdir a; touch a/.wh..wh..opq a/new", "mkdir a b; touch a/new b/3 c"),
        ("touch .wh.c; mkdir c", "mkdir a b c; touch a/1 a/2 b/3"),
        ("touch a", "mkdir b; touch a b/3 c"),
    ] {
        let (x, y) = (stack(vec![below(), layer(above)]), stack(vec![layer(merged)]));
        let found: Vec<String> = found(&x, &y).into_iter().filter(|d| d.starts_with('/')).collect();
        assert_eq!(found, [] as [&str; 0], "{above}");
    }
}

/// Compares two archives by hand: `KILN_A=a.tar KILN_B=b.tar cargo test --test it by_hand -- --ignored --nocapture`.
#[test]
#[ignore = "a tool for a person, who names two archives"]
fn by_hand() {
    let read = |key| Image::read(std::env::var_os(key).expect("KILN_A and KILN_B").as_ref()).expect("an archive");
    for line in differences(&read("KILN_A"), &read("KILN_B"), &Rules::default()) {
        println!("{line}");
    }
}
