//! Rows of ignore files.

use super::*;

fn ignored(file: &str, path: &str) -> bool {
    PatternMatcher::parse(file.as_bytes()).unwrap().matches(path.as_bytes())
}

#[test]
fn single_patterns() {
    // moby `patternmatcher_test.go` has most of these.
    let rows = [
        ("**", "file", true),
        ("**", "file/", true),
        ("**/", "file", true),
        ("**/", "file/", true),
        ("**", "/", true),
        ("**/", "/", true),
        ("**", "dir/file", true),
        ("**/", "dir/file", true),
        ("**/**", "dir/file", true),
        ("dir/**", "dir/file", true),
        ("dir/**", "dir/dir2/file", true),
        ("dir/**", "dir", false),
        ("**/dir", "dir", true),
        ("**/dir", "dir/file", true),
        ("**/dir2/*", "dir/dir2/file", true),
        ("**/dir2/*", "dir/dir2/dir2/file", true),
        ("**/dir2/**", "dir/dir2/dir2/file", true),
        ("**file", "file", true),
        ("**file", "dir/file", true),
        ("**/file", "dir/file", true),
        ("**file", "dir/dir/file", true),
        ("**/file*", "dir/dir/file", true),
        ("**/file*", "dir/dir/file.txt", true),
        ("**/file*txt", "dir/dir/file.txt", true),
        ("**/file*.txt", "dir/dir/file.txt", true),
        ("**/file*.txt*", "dir/dir/file.txt", true),
        ("**/**/*.txt", "dir/dir/file.txt", true),
        ("**/**/*.txt2", "dir/dir/file.txt", false),
        ("**/*.txt", "file.txt", true),
        ("**/**/*.txt", "file.txt", true),
        ("a**/*.txt", "a/file.txt", true),
        ("a**/*.txt", "a/dir/file.txt", true),
        ("a**/*.txt", "a/dir/dir/file.txt", true),
        ("a/*.txt", "a/dir/file.txt", false),
        ("a/*.txt", "a/file.txt", true),
        ("a/*.txt**", "a/file.txt", true),
        ("a[b-d]e", "ae", false),
        ("a[b-d]e", "ace", true),
        ("a[b-d]e", "aae", false),
        ("a[^b-d]e", "aze", true),
        (".*", ".foo", true),
        (".*", "foo", false),
        ("abc.def", "abcdef", false),
        ("abc.def", "abc.def", true),
        ("abc.def", "abcZdef", false),
        ("abc?def", "abcZdef", true),
        ("abc?def", "abcdef", false),
        ("a\\\\", "a\\", true),
        ("**/foo/bar", "foo/bar", true),
        ("**/foo/bar", "dir/foo/bar", true),
        ("**/foo/bar", "dir/dir2/foo/bar", true),
        ("abc/**", "abc", false),
        ("abc/**", "abc/def", true),
        ("abc/**", "abc/def/ghi", true),
        ("**/.foo", ".foo", true),
        ("**/.foo", "bar.foo", false),
        ("a(b)c/def", "a(b)c/def", true),
        ("a(b)c/def", "a(b)c/xyz", false),
        ("a.|)$(}+{bc", "a.|)$(}+{bc", true),
        ("dist/*.whl", "dist/proxy.py-2.4.0rc3.dev36+g08acad9-py3-none-any.whl", true),
        // One's own.
        ("*", "a", true),
        ("*", "a/b", true),
        ("/foo", "foo", true),
        ("/foo", "a/foo", false),
        ("foo/", "foo/x", true),
        ("./foo", "foo", true),
        ("a/../b", "b", true),
        ("a/../b", "a", false),
        ("#x", "#x", false),
        (" #x", "#x", true),
        ("\u{feff}x", "x", true),
        ("x\r", "x", true),
        ("a?c", "a한c", true),
        ("*+(x).txt", "a+(x).txt", true),
        ("[*]", "*", true),
        ("[*]", "a", false),
    ];
    for (file, path, want) in rows {
        assert_eq!(ignored(file, path), want, "{file} {path}");
    }
}

#[test]
fn exclusions() {
    let rows = [
        ("*\n!a/b", "a/b", false),
        ("*\n!a/b", "a", true),
        ("*\n!a/b", "a/c", true),
        ("a\n!a/x", "a/x", false),
        ("a\n!a/x", "a/x/y", false),
        ("!a/x\na", "a/x", true),
        ("*.md\n!README*.md\nREADME-secret.md", "README.md", false),
        ("*.md\n!README*.md\nREADME-secret.md", "README-secret.md", true),
        ("*.md\n!README*.md\nREADME-secret.md", "x.md", true),
        ("**\n! util", "util/f", false),
        ("**\n!**/*.go", "a/b/c.go", false),
        ("docs\n!docs/README.md", "docs/README.md", false),
        ("!docs/README.md\ndocs", "docs/README.md", true),
    ];
    for (file, path, want) in rows {
        assert_eq!(ignored(file, path), want, "{file:?} {path}");
    }
}

#[test]
fn the_walk_agrees_with_single_questions() {
    let files =
        ["*\n!a/b", "a\n!a/x\n", "**/*.o\n!keep/**", "a\n!a/x\na/x/y\n!a/x/y/z", "!a\na/b", "*\n!*/x", "", "**\n!**/x\na/**"];
    let names = ["a", "b", "x", "y", "z", "m.o", "keep"];
    for file in files {
        let matcher = PatternMatcher::parse(file.as_bytes()).unwrap();
        for one in names {
            let (top, state) = matcher.step(&State::default(), one.as_bytes());
            assert_eq!(top, matcher.matches(one.as_bytes()), "{file:?} {one}");
            for two in names {
                let path = format!("{one}/{two}");
                let (second, below) = matcher.step(&state, path.as_bytes());
                assert_eq!(second, matcher.matches(path.as_bytes()), "{file:?} {path}");
                assert!(
                    second || !top || !matcher.can_skip(one.as_bytes(), &state),
                    "{file:?} {one} was skipped, but {path} is in"
                );
                for three in names {
                    let path = format!("{path}/{three}");
                    let (third, _) = matcher.step(&below, path.as_bytes());
                    assert_eq!(third, matcher.matches(path.as_bytes()), "{file:?} {path}");
                    assert!(third || !top || !matcher.can_skip(one.as_bytes(), &state), "{file:?} {one} {path}");
                    assert!(third || !second || !matcher.can_skip(format!("{one}/{two}").as_bytes(), &below), "{file:?} {path}");
                }
            }
        }
    }
}

#[test]
fn skipping() {
    let rows = [
        ("node_modules", "node_modules", true),
        ("node_modules\n!src/x", "node_modules", true),
        ("*\n!src/x", "node_modules", true),
        ("*\n!src/x", "src", false),
        ("*\n!src/x/y", "src/x", false),
        ("*\n!src/x/y", "src/z", true),
        ("*\n!*/x", "src", false),
        ("*\n!*/x", "src/y", true),
        ("*\n!**/x", "src/y", false),
        ("!src/x\n*", "src", true),
        ("*\n!src", "src/y", false),
    ];
    for (file, directory, want) in rows {
        let matcher = PatternMatcher::parse(file.as_bytes()).unwrap();
        let (ignored, state) = matcher.step(&State::default(), directory.as_bytes());
        assert_eq!(ignored && matcher.can_skip(directory.as_bytes(), &state), want, "{file:?} {directory}");
    }
}

#[test]
fn mistakes() {
    let rows = [
        ("!/", "illegal exclusion pattern: \"!\" on line 1"),
        ("a\n!\n", "illegal exclusion pattern: \"!\" on line 2"),
        ("[", "syntax error in pattern `[` on line 1"),
        ("a[b-]", "syntax error in pattern `a[b-]` on line 1"),
        ("\\", "syntax error in pattern `\\` on line 1"),
    ];
    for (file, want) in rows {
        assert_eq!(PatternMatcher::parse(file.as_bytes()).unwrap_err().to_string(), want);
    }
    assert!(!PatternMatcher::from_patterns(["*.o", "!x"]).unwrap().matches(b"x"));
    assert!(PatternMatcher::parse(b"").unwrap().is_empty());
    // Bytes that are no text are names too.
    assert!(PatternMatcher::parse(b"a\xff*").unwrap().matches(b"a\xffb"));
}

#[test]
fn cleaning() {
    let rows = [
        ("", "."),
        ("a//b/", "a/b"),
        ("./a", "a"),
        ("/../a", "/a"),
        ("../a", "../a"),
        ("a/..", "."),
        ("/", "/"),
        ("../..", "../.."),
    ];
    for (path, want) in rows {
        assert_eq!(clean(path.as_bytes()), want.as_bytes(), "{path}");
    }
}
