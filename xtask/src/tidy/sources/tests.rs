use super::*;

/// Findings of all rules for one file with docs, as `line: message` or `message`.
#[track_caller]
fn check_one(path: &str, text: &str, expected: &[&str]) {
    let source = Source {
        path: path.to_owned(),
        text: text.to_owned(),
    };
    let found = check(&[source], &["/srv/checkout".to_owned()]);
    let found: Vec<String> = found
        .iter()
        .map(|f| format!("{}: {}", f.place, f.message))
        .collect();
    assert_eq!(found.len(), expected.len(), "{found:?}");
    for (found, expected) in found.iter().zip(expected) {
        assert!(
            found.contains(expected),
            "{found:?} does not contain {expected:?}"
        );
    }
}

#[test]
fn a_clean_file_passes() {
    check_one(
        "crates/hub/src/lib.rs",
        "//! Engine.\nfn f() { let _ = std::time::Instant::now(); }\n",
        &[],
    );
}

#[test]
fn long_files_are_found() {
    let text = "// x\n".repeat(801);
    check_one("crates/hub/src/ingest.rs", &text, &["801 lines"]);
    check_one("crates/hub/src/ingest.rs", &"// x\n".repeat(800), &[]);
    check_one("tests/clients/rust/x.rs", &text, &[]);
}

#[test]
fn forbidden_macros_are_found() {
    let text = format!(
        "fn f() {{\n    {}1);\n    {});\n}}",
        FORBIDDEN_MACROS[1], FORBIDDEN_MACROS[0]
    );
    check_one("crates/hub/src/x.rs", &text, &["x.rs:2", "x.rs:3"]);
    check_one("docs/x.md", &text, &[]);
}

#[test]
fn machine_paths_are_found() {
    check_one(
        "docs/x.md",
        &format!("see {}me/x", HOMES[0]),
        &["docs/x.md:1: path of one machine"],
    );
    check_one("docs/x.md", "a\ncd /srv/checkout && ls", &["docs/x.md:2"]);
    check_one("docs/x.md", &format!("cd \"{}x\"", HOMES[2]), &["docs/x.md:1"]);
    check_one(
        "docs/x.md",
        &format!("https://example.org{}x /srv/checkout2", HOMES[0]),
        &[],
    );
}

#[test]
fn private_registries_are_found() {
    check_one(
        "x/package-lock.json",
        r#"  "resolved": "https://registry.npmjs.org/a/-/a-1.tgz","#,
        &[],
    );
    check_one(
        "x/package-lock.json",
        r#"  "resolved": "http://mirror.example/a-1.tgz","#,
        &["mirror.example"],
    );
    check_one(
        "Cargo.lock",
        r#"source = "registry+https://github.com/rust-lang/crates.io-index""#,
        &[],
    );
    check_one(
        "Cargo.lock",
        r#"source = "registry+https://crates.example/index""#,
        &["crates.example"],
    );
    check_one(
        "x/requirements.txt",
        "--index-url https://pip.example/simple\nsix==1.17.0",
        &["pip.example"],
    );
    check_one("x/.npmrc", "registry=https://npm.example/", &["npm.example"]);
}

#[test]
fn unsafe_code_without_reason_is_found() {
    let block = concat!("unsafe", " { f() }");
    check_one(
        "crates/hub/src/x.rs",
        &format!("fn g() {{\n    {block}\n}}"),
        &["x.rs:2: unsafe"],
    );
    check_one(
        "crates/hub/src/x.rs",
        &format!("fn g() {{\n    // SAFETY: f has no duties.\n    {block}\n}}"),
        &[],
    );
}

#[test]
fn impure_code_is_found_in_pure_crates_only() {
    let text = format!(
        "fn f() {{\n    let t = std::time::{}();\n    std::{}(g);\n}}",
        IMPURE[1], IMPURE[3]
    );
    check_one("crates/mqtt/src/x.rs", &text, &["x.rs:2", "x.rs:3"]);
    check_one("crates/heads/src/x.rs", &text, &[]);
    check_one("crates/mqtt/src/x/tests.rs", &text, &[]);
    check_one(
        "crates/mqtt/src/x.rs",
        &format!("#[cfg(test)]\nmod tests {{\n{text}\n}}"),
        &[],
    );
    check_one("crates/mqtt/src/x.rs", &format!("// not {} here", IMPURE[0]), &[]);
}

#[test]
fn crates_without_docs_or_lints_are_found() {
    check_one("crates/hub/src/lib.rs", "pub mod x;\n", &["//! docs"]);
    check_one("crates/hub/src/x/lib.rs", "pub mod x;\n", &[]);
    check_one(
        "crates/hub/Cargo.toml",
        "[package]\nname = \"x\"\n",
        &["workspace lints"],
    );
    check_one("crates/hub/Cargo.toml", "[lints]\nworkspace = true\n", &[]);
    check_one("crates/mqtt/fuzz/Cargo.toml", "[package]\n", &[]);
}
