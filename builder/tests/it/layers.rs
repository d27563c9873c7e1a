//! What is in a layer, entry by entry, where the merged tree can't tell.

use kiln_oci::digest::Digest;

use crate::support::archive::Image;
use crate::support::home::Home;
use crate::support::tar;

/// The paths in the image's last layer.
fn last_layer(dockerfile: &str) -> Vec<String> {
    layer(dockerfile, |e| e.path.escape_ascii().to_string())
}

fn layer(dockerfile: &str, tell: fn(&tar::Entry<'_>) -> String) -> Vec<String> {
    let home = Home::new();
    let context = home.context("c", dockerfile);
    let archive = home.path("out.tar");
    let output = format!("type=oci,dest={}", archive.display());
    home.run(["build", "--output", &output, context.to_str().unwrap()]).ok();
    let image = Image::read(&archive).unwrap();
    let layer = image.layers.last().unwrap();
    let ids = image.config["rootfs"]["diff_ids"].as_array().unwrap().clone();
    assert_eq!(ids.last().unwrap().as_str(), Some(Digest::of(layer).to_string().as_str()));
    tar::entries(layer).unwrap().iter().map(tell).collect()
}

/// Dropping a copy from a folder is no change of the folder.
#[test]
fn a_folder_keeps_the_time_that_a_run_left_it_with() {
    let found = layer(
        "FROM busybox\nRUN mkdir -p /t/d && touch /t/same /t/d/same\n\
         RUN chmod -R a+r /t && rm /etc/hostname && chown 5 /t/d && touch -d @1000000000 /t /t/d\n",
        |e| format!("{} {}", e.path.escape_ascii(), e.mtime),
    );
    assert_eq!(found[1..], ["etc/.wh.hostname 0", "t 1000000000", "t/d 1000000000"]);
}

/// The overlay copies a file up before a command changes it, and also when the change is none. BuildKit leaves such copies
/// out; so a `chmod -R` of much costs nothing.
#[test]
fn what_a_run_leaves_as_it_was_is_in_no_layer() {
    let base = "FROM busybox\nRUN mkdir -p /t/d && echo a > /t/d/a && ln -s a /t/d/l && echo h > /t/h && ln /t/h /t/h2 && chown 3:4 /t/d && touch -d @1000000000 /t/d/a\n";
    let rows: &[(&str, &[&str])] = &[
        ("chmod -R a+r /t && chown -R 0:0 /t/d/a", &[]),
        ("chmod 600 /t/d/a && chmod 644 /t/d/a", &[]),
        ("cp -p /t/d/a /t/d/b && mv /t/d/b /t/d/a", &[]),
        ("touch /t/d/new && rm /t/d/new", &[]),
        ("chown -h 0:0 /t/d/l", &[]),
        // Each of these is a change of one thing.
        ("chmod 600 /t/d/a", &["t", "t/d", "t/d/a"]),
        ("touch -d '2001-02-03' /t/d/a", &["t", "t/d", "t/d/a"]),
        ("chown 5 /t/d/a", &["t", "t/d", "t/d/a"]),
        ("chown -h 5 /t/d/l", &["t", "t/d", "t/d/l"]),
        ("touch -r /t/d/a /x && echo b > /t/d/a && touch -r /x /t/d/a && rm /x", &["t", "t/d", "t/d/a"]),
        ("rm /t/d/l && ln -s b /t/d/l", &["t", "t/d", "t/d/l"]),
        ("chmod 700 /t/d", &["t", "t/d"]),
        ("rm -r /t/d", &["t", "t/.wh.d"]),
        // A new name for an old file needs the old one in the layer too, or they would be two files.
        ("ln /t/d/a /t/d/z", &["t", "t/d", "t/d/a", "t/d/z"]),
    ];
    for (command, expected) in rows {
        assert_eq!(last_layer(&format!("{base}RUN {command}\n")), *expected, "RUN {command}");
    }
    // A folder that was replaced by one that is the same holds what it holds, and hides the rest.
    let replaced = last_layer(&format!("{base}RUN cp -a /t/d /t/e && rm -r /t/d && mv /t/e /t/d\n"));
    assert_eq!(replaced, ["t", "t/d", "t/d/.wh..wh..opq", "t/d/a", "t/d/l"]);
}

/// A layer is complete long before the build is: its digest is known while the steps after it run, also when one of them fails.
#[test]
fn a_layer_is_packed_while_later_steps_run() {
    let home = Home::new();
    let context = home.context(
        "c",
        "FROM busybox\nCOPY f /\nRUN i=0; while [ ! -e /no ] && [ $i -lt 40 ]; do sleep 0.1; i=$((i+1)); done; false\n",
    );
    home.write("c/f", "f");
    home.run(["build", context.to_str().unwrap()]).fails(1);
    let layers = home.store().join("layers");
    let built = std::fs::read_dir(layers).unwrap().map(|entry| entry.unwrap().path());
    let built: Vec<_> = built.filter(|path| path.file_name().unwrap().to_str().unwrap().starts_with('n')).collect();
    assert_eq!(built.len(), 1, "{built:?}");
    let facts = std::fs::read_to_string(built[0].join("facts.json")).unwrap();
    assert!(facts.contains("\"diff_id\":\"sha256:"), "{facts}");
}

/// F33: 510 layers, or 1,000 with `KILN_TEST_FULL=1`, and an overlay takes 500.
#[test]
fn images_of_many_layers() {
    let home = Home::new();
    let layers = if std::env::var_os("KILN_TEST_FULL").is_some() { 1000 } else { 510 };
    let mut text = String::from("FROM busybox AS deep\n");
    for n in 0..layers {
        text.push_str(&format!("COPY <<E /d/{}\n{n}\nE\n", n % 7 * 1000 + n / 7));
    }
    text.push_str(
        "RUN rm /d/0 && echo new > /d/1000 && ln -s 1000 /d/link && chmod 600 /d/2000 && cat /d/* | wc -l > /n\n\
         RUN test ! -e /d/0 && test $(cat /d/link) = new && test $(stat -c %a /d/2000) = 600 && rm -r /d && mkdir /d && echo x > /d/x\n\
         FROM busybox\nRUN --mount=from=deep,target=/m test $(ls /m/d) = x && cp /m/n /n\n",
    );
    let context = home.context("c", &text);
    let path = context.to_str().unwrap();
    home.run(["build", "--target=deep", "-t", "deep", path]).ok();
    home.run(["build", path]).ok();
    let out = home.run(["run", "--rm", "deep", "sh", "-c", "cat /n; ls /d"]).ok();
    assert_eq!(out.stdout.trim(), format!("{layers}\nx"), "{}", out.stderr);
    home.left_nothing();
}
