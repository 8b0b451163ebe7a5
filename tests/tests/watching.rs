//! Metrics that the programs really give, the page that lists them, and the alerts and boards that
//! are made of them.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use distd_tests::scrape::{Metric, Scraped, promtool};
use serde_json::Value;

/// Lines between which the page of metrics is written by the test.
const BEGIN: &str = "<!-- metrics -->\n";
const END: &str = "<!-- end -->";

fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the repository").join(path)
}

fn read(path: &str) -> String {
    std::fs::read_to_string(repository(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn row(name: &str, metric: &Metric, programs: &[&str]) -> String {
    let labels: Vec<&str> = metric.labels.iter().map(String::as_str).collect();
    let labels = if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
    let help = if name == "distd_build_info" { "Version of the program." } else { &metric.help };
    format!("| `{name}{labels}` | {} | {} | {help} |\n", metric.kind, programs.join(", "))
}

/// Names of metrics in an expression of Prometheus' query language.
fn names_in(text: &str) -> BTreeSet<String> {
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    text.split(|c| !word(c)).filter(|name| name.starts_with("distd_")).map(str::to_owned).collect()
}

/// Expressions of the boards in a JSON document.
fn expressions(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                match value {
                    Value::String(text) if key == "expr" || key == "query" => found.push(text.clone()),
                    value => expressions(value, found),
                }
            }
        }
        Value::Array(list) => list.iter().for_each(|value| expressions(value, found)),
        _ => {}
    }
}

#[test]
fn metrics_alerts_and_boards_agree() {
    let scraped = Scraped::new();
    let metrics = scraped.metrics();

    for (program, text) in &scraped.texts {
        if let Some((is_content, said)) = promtool(&["check", "metrics"], text) {
            assert!(is_content, "{program}: {said}");
        }
    }

    // A metric without a sample would hide its labels from the page.
    for (name, (metric, _)) in &metrics {
        assert!(!metric.samples.is_empty(), "{name} has no sample: have the realm of the test do it");
    }
    let rows: String = metrics.iter().map(|(name, (metric, programs))| row(name, metric, programs)).collect();
    let table = format!("{BEGIN}| metric | type | of | |\n|---|---|---|---|\n{rows}{END}");
    let page = read("docs/operations.md");
    let begin = page.find(BEGIN).expect("the page has a table of metrics");
    let end = begin + page[begin..].find(END).expect("the table ends") + END.len();
    if std::env::var_os("DISTD_WRITE_DOCS").is_some() {
        let page = format!("{}{table}{}", &page[..begin], &page[end..]);
        std::fs::write(repository("docs/operations.md"), page).expect("write");
    } else {
        assert_eq!(page[begin..end], table, "run it again with DISTD_WRITE_DOCS=1");
    }

    let samples: BTreeSet<&str> =
        metrics.values().flat_map(|(metric, _)| metric.samples.iter().map(String::as_str)).collect();
    let alerts = read("deploy/alerts.yml");
    let mut used = names_in(&alerts);
    assert!(used.len() > 10, "{used:?}");
    let boards: Vec<_> = std::fs::read_dir(repository("deploy/grafana")).expect("boards").collect();
    assert!(boards.len() >= 3);
    for board in boards {
        let path = board.expect("a board").path();
        let text = std::fs::read_to_string(&path).expect("readable");
        let board: Value = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let mut found = Vec::new();
        expressions(&board["panels"], &mut found);
        assert!(found.len() >= 5, "{}", path.display());
        // An expression that Prometheus cannot read would be an empty panel.
        let rules: Vec<Value> = found
            .iter()
            .enumerate()
            .map(|(n, expr)| {
                let expr = expr.replace("$__rate_interval", "5m").replace("$instance", ".*");
                serde_json::json!({"record": format!("board:{n}"), "expr": expr})
            })
            .collect();
        let rules = serde_json::json!({"groups": [{"name": "board", "rules": rules}]});
        let file = tempfile::NamedTempFile::with_suffix(".json").expect("a file");
        std::fs::write(file.path(), rules.to_string()).expect("write");
        let file = file.path().display().to_string();
        if let Some((is_content, said)) = promtool(&["check", "rules", &file], "") {
            assert!(is_content, "{}: {said}", path.display());
        }
        used.extend(found.iter().flat_map(|expr| names_in(expr)));
    }
    let unknown: Vec<_> = used.iter().filter(|name| !samples.contains(name.as_str())).collect();
    assert!(unknown.is_empty(), "alerts or boards name metrics that no program gives: {unknown:?}");
}

#[test]
fn alerts_fire_when_they_should() {
    let rules = repository("deploy/alerts.yml").display().to_string();
    if let Some((is_content, said)) = promtool(&["check", "rules", &rules], "") {
        assert!(is_content, "{said}");
    }
    let cases = repository("tests/lib/alerts_test.yml").display().to_string();
    if let Some((is_content, said)) = promtool(&["test", "rules", &cases], "") {
        assert!(is_content, "{said}");
    }
}

#[test]
fn each_alert_has_its_case_and_its_line_in_the_runbook() {
    let names = |text: &str, key: &str| -> BTreeSet<String> {
        let lines = text.lines().map(str::trim).map(|line| line.trim_start_matches("- "));
        lines.filter_map(|line| line.strip_prefix(key)).map(|name| name.trim().to_owned()).collect()
    };
    let alerts = names(&read("deploy/alerts.yml"), "alert:");
    assert!(alerts.len() >= 10, "{alerts:?}");
    assert_eq!(alerts, names(&read("tests/lib/alerts_test.yml"), "alertname:"), "cases of alerts");
    let page = read("docs/operations.md");
    for alert in &alerts {
        assert!(page.contains(&format!("| `{alert}` |")), "{alert} has no line in docs/operations.md");
    }
}
