//! Metrics of real programs, as Prometheus reads them.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::process::{Command, Stdio};

use crate::artifacts;
use crate::lab::{Daemon, Lab, wait_until};
use crate::receiver::Receiver;

/// One metric as its program gives it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Metric {
    /// `counter`, `gauge` or `histogram`.
    pub kind: String,
    /// Text for people.
    pub help: String,
    /// Labels of its samples, without those of a histogram's classes.
    pub labels: BTreeSet<String>,
    /// Names of its samples.
    pub samples: BTreeSet<String>,
}

/// Metrics of an origin, a relay and an agent in whose realm a rollout has brought a release to a
/// device.
pub struct Scraped {
    /// Text that each program gave: `origin`, `relay` and `agent`.
    pub texts: BTreeMap<&'static str, String>,
}

/// Metrics in Prometheus' text format, by name.
///
/// # Panics
/// If the text has another form.
pub fn metrics_in(text: &str) -> BTreeMap<String, Metric> {
    let mut metrics: BTreeMap<String, Metric> = BTreeMap::new();
    let mut current = String::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').expect("a name and a text");
            current = name.to_owned();
            let before =
                metrics.insert(current.clone(), Metric { help: help.to_owned(), ..Metric::default() });
            assert!(before.is_none(), "{name} is there twice");
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').expect("a name and a type");
            assert_eq!(name, current, "the type follows the help");
            metrics.get_mut(name).expect("it has a help text").kind = kind.to_owned();
        } else {
            let name = line.split(['{', ' ']).next().expect("a name");
            assert!(name.starts_with(&current), "{line} follows {current}");
            let metric = metrics.get_mut(&current).expect("a sample follows its help text");
            metric.samples.insert(name.to_owned());
            let labels = line.split_once('{').and_then(|(_, rest)| rest.rsplit_once('}')).map(|(l, _)| l);
            for label in labels.unwrap_or_default().split("\",").filter_map(|label| label.split_once('=')) {
                if !(metric.kind == "histogram" && label.0 == "le") {
                    metric.labels.insert(label.0.to_owned());
                }
            }
        }
    }
    metrics
}

/// Runs `promtool` with `input`; returns whether it was content, and what it said. `None` without
/// promtool.
///
/// # Panics
/// If promtool cannot be talked to.
pub fn promtool(args: &[&str], input: &str) -> Option<(bool, String)> {
    let mut command = Command::new("promtool");
    command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let Ok(mut child) = command.spawn() else {
        println!("skipped: no promtool, which Debian's package prometheus has");
        return None;
    };
    child.stdin.take().expect("piped").write_all(input.as_bytes()).expect("promtool reads");
    let output = child.wait_with_output().expect("promtool ends");
    let said = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    Some((output.status.success(), said.concat()))
}

fn scraped(daemon: &Daemon) -> String {
    let output = Command::new("curl").args(["-sSf", &daemon.metrics_url()]).output().expect("run curl");
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).expect("text")
}

impl Scraped {
    /// Starts a realm, brings a release to a device, and reads all metrics.
    ///
    /// # Panics
    /// If something of that fails.
    pub fn new() -> Self {
        let lab = Lab::start_with(&["--patches", "true", "--webhook-network", "127.0.0.0/8"]);
        let receiver = Receiver::start();
        lab.admin(&["webhook", "add", &receiver.url("/")]).ok();
        let (v1, v2) = artifacts::release_pair(lab.path("").as_path(), 77);
        lab.push(&v1, "os", "1").ok();
        lab.admin(&["channel", "set", "os:stable", "1"]).ok();
        let settings = lab.path("relay.toml");
        std::fs::write(&settings, "[apt]\nlisten = \"127.0.0.1:0\"\n").expect("write");
        let settings = settings.display().to_string();
        let args = ["--config", &settings, "--metrics", "127.0.0.1:0"];
        let relay = lab.relay_at("relay", lab.quic(), "127.0.0.1:0", &args);
        lab.enroll("device", &relay.addresses[0]);
        lab.configure("device", "[apt]\nlisten = \"127.0.0.1:0\"\n");
        let mut command = lab.agent_command("device", "127.0.0.1:0");
        command.args(["--metrics", "127.0.0.1:0", "--gateway", "127.0.0.1:0", "--offer", "os"]);
        command.args(["--follow", "os:stable", "--follow-poll-seconds", "1"]);
        command.arg("--follow-into").arg(lab.path("place")).arg("--hooks").arg(lab.path("hooks"));
        let agent = Daemon::start(command, &lab.path("device.agent.log"), "agent listening on ");
        let runs = |version: &str| {
            std::fs::read_link(lab.path("place/current")).is_ok_and(|to| to.ends_with(version))
        };
        wait_until("the device runs release 1", || runs("1"));
        lab.push(&v2, "os", "2").ok();
        // Patch sets between the releases and from nothing.
        lab.patches("os", 2);
        wait_until("the device has reported", || lab.metric("distd_devices") == 1);
        lab.admin(&["rollout", "start", "os:stable", "2", "--waves", "100%", "--soak", "1s"]).ok();
        wait_until("the device runs release 2", || runs("2"));
        wait_until("an event was told", || lab.metric("distd_webhook_tries_total") > 0);
        let origin = lab.curl("/metrics", &[]).1;
        let texts = [("origin", origin), ("relay", scraped(&relay)), ("agent", scraped(&agent))];
        Self { texts: texts.into_iter().collect() }
    }

    /// All metrics, by name, each with the programs that give it.
    ///
    /// # Panics
    /// If two programs give different things under one name.
    pub fn metrics(&self) -> BTreeMap<String, (Metric, Vec<&'static str>)> {
        let mut all: BTreeMap<String, (Metric, Vec<&'static str>)> = BTreeMap::new();
        for program in ["origin", "relay", "agent"] {
            for (name, metric) in metrics_in(&self.texts[program]) {
                let (known, programs) = all.entry(name.clone()).or_insert_with(|| (metric.clone(), vec![]));
                if name != "distd_build_info" {
                    assert_eq!(
                        (&known.kind, &known.help),
                        (&metric.kind, &metric.help),
                        "{name} of {program}"
                    );
                }
                known.labels.extend(metric.labels);
                known.samples.extend(metric.samples);
                programs.push(program);
            }
        }
        all
    }
}

impl Default for Scraped {
    fn default() -> Self {
        Self::new()
    }
}
