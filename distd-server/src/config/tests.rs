//! Tests of the settings.

use distd_peer::settings::Source;

use super::*;

fn command_line(pairs: &[(&'static str, &str)]) -> CommandLine {
    let mut line = CommandLine::new();
    for (key, value) in pairs {
        line.entry(*key).or_default().push((*value).to_owned());
    }
    line
}

fn file(text: &str) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    std::fs::write(file.path(), text).expect("write");
    file
}

#[test]
fn a_data_directory_alone_is_enough() {
    let settings = Settings::resolve(&command_line(&[("data", "/d")]), |_| None, None).expect("settings");
    assert_eq!(settings.places().db, "sqlite:/d/distd.sqlite");
    assert_eq!(settings.http.port(), 7443);
    assert_eq!(*settings.0.source("http"), Source::Default);
    let error = Settings::resolve(&command_line(&[]), |_| None, None).expect_err("no directory");
    assert!(error.to_string().contains("--data DIR"), "{error}");
}

#[test]
fn command_line_beats_environment_beats_file_beats_default() {
    let file =
        file("data = \"/f\"\nzstd_level = 5\nhttp = \"127.0.0.1:1\"\nname = [\"a.example\", \"10.0.0.1\"]\n");
    let environment = |name: &str| match name {
        "DISTD_SERVER_HTTP" => Some("127.0.0.1:2".to_owned()),
        "DISTD_SERVER_DATA" => Some("/e".to_owned()),
        _ => None,
    };
    let settings = Settings::resolve(&command_line(&[("data", "/c")]), environment, Some(file.path()))
        .expect("settings");
    assert_eq!(settings.data, Path::new("/c"));
    assert_eq!(*settings.0.source("data"), Source::CommandLine);
    assert_eq!(settings.http.port(), 2);
    assert_eq!(*settings.0.source("http"), Source::Environment("DISTD_SERVER_HTTP"));
    assert_eq!(settings.zstd_level, 5);
    assert_eq!(*settings.0.source("zstd_level"), Source::File(file.path().to_owned()));
    assert_eq!(settings.name, ["a.example", "10.0.0.1"]);
    let shown = settings.effective();
    assert!(shown.contains("http = \"127.0.0.1:2\"  # environment variable DISTD_SERVER_HTTP"), "{shown}");
    let unset = shown.lines().filter(|line| line.ends_with(" is not set")).count();
    let table: toml::Table = shown.parse().expect("is TOML itself");
    assert_eq!(table.len() + unset, TABLE.settings.len());
}

#[test]
fn every_mistake_is_reported() {
    let file = file(
        "zstd_level = 40\nhtpp = \"x\"\ncert_validity = \"1s\"\nstore = 1.5\npatches = \"maybe\"\npatch_threads = 0\n",
    );
    let line = command_line(&[("data", "/d"), ("http", ":80"), ("name", "no host!")]);
    let error = Settings::resolve(&line, |_| None, Some(file.path())).expect_err("mistakes").to_string();
    for part in [
        "zstd_level",
        "\"htpp\"",
        "cert_validity",
        "http (command line)",
        "no host!",
        "store is",
        "patches (file",
        "patch_threads",
    ] {
        assert!(error.contains(part), "{part} in {error}");
    }
}

#[test]
fn plain_http_needs_a_loopback_address() {
    let on = |address| command_line(&[("data", "/d"), ("http_plain", "true"), ("http", address)]);
    assert!(Settings::resolve(&on("127.0.0.1:80"), |_| None, None).is_ok());
    assert!(Settings::resolve(&on("[::1]:80"), |_| None, None).is_ok());
    for address in ["0.0.0.0:80", "[::]:80", "192.168.1.1:80"] {
        let error = Settings::resolve(&on(address), |_| None, None).expect_err("refused");
        assert!(error.to_string().contains("loopback"), "{error}");
    }
    let without = command_line(&[("data", "/d"), ("http_plain", "true")]);
    let settings = Settings::resolve(&without, |_| None, None).expect("settings");
    assert!(settings.http.ip().is_loopback());
}

#[test]
fn nodes_and_http_cannot_share_a_port() {
    let on = |http, quic| {
        let line = command_line(&[("data", "/d"), ("http", http), ("quic", quic)]);
        Settings::resolve(&line, |_| None, None)
    };
    let error = on("0.0.0.0:443", "[::]:443").expect_err("one port").to_string();
    assert!(error.contains("quic (command line)"), "{error}");
    assert!(on("192.0.2.1:443", "192.0.2.2:443").is_ok());
    assert!(on("127.0.0.1:0", "127.0.0.1:0").is_ok());
}

#[test]
fn a_password_is_not_shown() {
    let line = command_line(&[("data", "/d"), ("db", "postgres://me:secret@db/distd")]);
    let shown = Settings::resolve(&line, |_| None, None).expect("settings").effective();
    assert!(!shown.contains("secret"), "{shown}");
}

#[test]
fn the_page_for_operators_has_this_table() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/operations.md");
    distd_peer::settings::check_page(&page, "distd-server", &TABLE.markdown());
}

#[test]
fn the_defaults_in_words_are_the_defaults() {
    let settings = Settings::resolve(&command_line(&[("data", "/d")]), |_| None, None).expect("settings");
    for setting in TABLE.settings {
        let default = setting.default.trim_matches('`');
        let shown = (setting.show)(&settings).to_string();
        // Defaults in other words follow from the machine or from other settings.
        if default.parse::<u64>().is_ok() || ["true", "false"].contains(&default) || default.starts_with('[')
        {
            assert_eq!(shown.trim_matches('"'), default, "{}", setting.key);
        }
    }
}

#[test]
fn devices_of_hawkbit_are_told_an_address_that_no_caller_chooses() {
    let http: SocketAddr = "127.0.0.1:7443".parse().expect("an address");
    let everywhere: SocketAddr = "[::]:7443".parse().expect("an address");
    let options = |more: &[(&'static str, &str)], at| {
        let line: Vec<_> = [("data", "/d")].into_iter().chain(more.iter().copied()).collect();
        Settings::resolve(&command_line(&line), |_| None, None).expect("settings").ddi_options(at)
    };
    assert!(options(&[("ddi_url", "https://a.example")], http).is_none(), "off unless switched on");
    let url = |more: &[(&'static str, &str)], at| {
        let more: Vec<_> = [("ddi", "true")].into_iter().chain(more.iter().copied()).collect();
        options(&more, at).expect("on").url
    };
    assert_eq!(url(&[], http), "https://127.0.0.1:7443");
    assert_eq!(url(&[], everywhere), "https://localhost:7443");
    assert_eq!(url(&[("name", "a.example")], everywhere), "https://a.example:7443");
    assert_eq!(url(&[("name", "2001:db8::1")], everywhere), "https://[2001:db8::1]:7443");
    let given = [("name", "a.example"), ("ddi_url", "https://b.example/x/")];
    assert_eq!(url(&given, everywhere), "https://b.example/x");
    for (key, bad) in
        [("ddi_url", "b.example"), ("ddi_url", "https://b/?a=b"), ("ddi_url", "ftp://b"), ("ddi_poll", "1s")]
    {
        let line = command_line(&[("data", "/d"), (key, bad)]);
        assert!(Settings::resolve(&line, |_| None, None).is_err(), "{key} {bad}");
    }
}
