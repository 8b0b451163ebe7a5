//! The `[limits]` section of configuration files: its form and its checks.

use distd_core::fleet::window::{Window, parse_days, parse_minute};
use serde::{Deserialize, Serialize};

use super::schedule::{RateWindow, Schedule};
use super::{Class, Limit, Limits};

/// Lowest accepted rate, bytes a second. At a lower rate a chunk would take longer than any peer
/// waits for it. Other settings turn off uploads and downloads.
pub const RATE_MIN: u64 = 4096;

/// Largest accepted number of `windows`.
const WINDOWS_MAX: usize = 64;

/// The section as written. Deserialization refuses unknown keys.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LimitsFile {
    /// Upload rate of all peers together, bytes a second.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub upload_bytes_per_second: Option<u64>,
    /// Download rate from all sources together, bytes a second.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub download_bytes_per_second: Option<u64>,
    /// Upload rate of each peer by itself, bytes a second.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub upload_bytes_per_second_per_peer: Option<u64>,
    /// Download rate from each source by itself, bytes a second.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub download_bytes_per_second_per_peer: Option<u64>,
    /// Maximum number of batches served at once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub upload_slots: Option<usize>,
    /// Maximum number of batches served at once to one peer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub upload_slots_per_peer: Option<usize>,
    /// Rates while a user waits for a pull.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interactive: Option<RatesFile>,
    /// Rates while an update is pulled.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub update: Option<RatesFile>,
    /// Rates while an artifact is pulled that may be wanted later.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prefetch: Option<RatesFile>,
    /// Times of the week with other rates.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub windows: Vec<WindowFile>,
}

/// Rates of one class of pulls.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RatesFile {
    /// Upload rate during such a pull, bytes a second.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub upload_bytes_per_second: Option<u64>,
    /// Download rate of such pulls, bytes a second.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub download_bytes_per_second: Option<u64>,
}

/// One entry of `windows`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct WindowFile {
    /// Days on which the window begins, `mon-fri`, `sat,sun`, …; every day if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub days: Option<String>,
    /// First minute of the window, `HH:MM`.
    pub from: String,
    /// First minute after the window, `HH:MM`. A time that is not after `from` is on the next day.
    pub to: String,
    /// Class whose rates the window changes; absent: the rates of all traffic together.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub class: Option<String>,
    /// Upload rate during the window, bytes a second.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub upload_bytes_per_second: Option<u64>,
    /// Download rate during the window, bytes a second.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub download_bytes_per_second: Option<u64>,
}

/// Every mistake in `[limits]`, one sentence each.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", .0.join("; "))]
pub struct LimitsError(pub Vec<String>);

/// Collects every mistake, so that one run reports them all.
#[derive(Default)]
struct Checker {
    wrong: Vec<String>,
}

impl Checker {
    fn rate(&mut self, name: &str, rate: Option<u64>) -> Option<u64> {
        if let Some(rate) = rate.filter(|rate| *rate < RATE_MIN) {
            self.wrong.push(format!("{name} = {rate}: the minimum is {RATE_MIN}"));
        }
        rate
    }

    fn slots(&mut self, name: &str, slots: Option<usize>) {
        if slots == Some(0) {
            self.wrong.push(format!("{name} = 0: the minimum is 1"));
        }
    }

    /// Returns the window's class and its part of the week, each as far as it can be parsed.
    fn window(&mut self, name: &str, file: &WindowFile) -> (Option<Class>, Option<Window>) {
        let class = file.class.as_deref().map(str::parse::<Class>);
        if let Some(Err(wrong)) = &class {
            self.wrong.push(format!("{name}.class = {wrong}"));
        }
        let days = file.days.as_deref().map_or(Ok(0x7f), parse_days);
        if let Err(error) = &days {
            self.wrong.push(format!("{name}.days: {error}"));
        }
        let mut time = |key: &str, text: &str| {
            let minute = parse_minute(text);
            if let Err(error) = &minute {
                self.wrong.push(format!("{name}.{key}: {error}"));
            }
            minute.ok()
        };
        let times = time("from", &file.from).zip(time("to", &file.to));
        let when = days.ok().zip(times).map(|(days, (from, to))| Window::new(days, from, to));
        if let Some(Err(error)) = &when {
            self.wrong.push(format!("{name}: {error}"));
        }
        if file.upload_bytes_per_second.is_none() && file.download_bytes_per_second.is_none() {
            self.wrong.push(format!("{name} changes nothing: give it a rate"));
        }
        (class.and_then(Result::ok), when.and_then(Result::ok))
    }
}

impl LimitsFile {
    /// Parses the section `[limits]` of a file with settings.
    ///
    /// # Errors
    /// The mistake as a sentence, without the text of the line, which may be quoted elsewhere.
    pub fn of_section(section: &toml::Value) -> Result<Self, String> {
        section.clone().try_into().map_err(|e: toml::de::Error| format!("[limits]: {}", e.message()))
    }

    /// Returns the limits that the section sets.
    ///
    /// # Errors
    /// [`LimitsError`] with every mistake.
    pub fn check(&self) -> Result<Limits, LimitsError> {
        let mut checker = Checker::default();
        let mut limits = Limits::default();
        limits.upload.all.otherwise =
            checker.rate("limits.upload_bytes_per_second", self.upload_bytes_per_second);
        limits.download.all.otherwise =
            checker.rate("limits.download_bytes_per_second", self.download_bytes_per_second);
        limits.upload.each =
            checker.rate("limits.upload_bytes_per_second_per_peer", self.upload_bytes_per_second_per_peer);
        limits.download.each = checker
            .rate("limits.download_bytes_per_second_per_peer", self.download_bytes_per_second_per_peer);
        checker.slots("limits.upload_slots", self.upload_slots);
        checker.slots("limits.upload_slots_per_peer", self.upload_slots_per_peer);
        for (class, rates) in [
            (Class::Interactive, self.interactive),
            (Class::Update, self.update),
            (Class::Prefetch, self.prefetch),
        ] {
            let Some(rates) = rates else { continue };
            let name = |key: &str| format!("limits.{}.{key}", class.name());
            let up = checker.rate(&name("upload_bytes_per_second"), rates.upload_bytes_per_second);
            let down = checker.rate(&name("download_bytes_per_second"), rates.download_bytes_per_second);
            limits.upload.of(class).otherwise = up;
            limits.download.of(class).otherwise = down;
        }
        if self.windows.len() > WINDOWS_MAX {
            checker.wrong.push(format!(
                "limits.windows has {} entries: the maximum is {WINDOWS_MAX}",
                self.windows.len()
            ));
        }
        for (n, file) in self.windows.iter().enumerate() {
            let name = format!("limits.windows[{n}]");
            let (class, when) = checker.window(&name, file);
            for (key, rate, limit) in [
                ("upload_bytes_per_second", file.upload_bytes_per_second, &mut limits.upload),
                ("download_bytes_per_second", file.download_bytes_per_second, &mut limits.download),
            ] {
                let rate = checker.rate(&format!("{name}.{key}"), rate);
                let Some((rate, when)) = rate.zip(when) else { continue };
                let schedule: &mut Schedule = match class {
                    Some(class) => limit.of(class),
                    None => &mut limit.all,
                };
                schedule.windows.push(RateWindow { when, rate });
            }
        }
        if checker.wrong.is_empty() { Ok(limits) } else { Err(LimitsError(checker.wrong)) }
    }

    /// Checks the section of a relay, whose transfers have no class. Refuses limits by class, and
    /// upload slots, for which a relay has `upload_slots_max`.
    ///
    /// # Errors
    /// [`LimitsError`] with every mistake.
    pub fn check_without_classes(&self) -> Result<Limits, LimitsError> {
        let classes = [self.interactive.is_some(), self.update.is_some(), self.prefetch.is_some()];
        let of_class = classes.contains(&true) || self.windows.iter().any(|window| window.class.is_some());
        let slots = self.upload_slots.is_some() || self.upload_slots_per_peer.is_some();
        let mut wrong = self.check().err().map(|error| error.0).unwrap_or_default();
        if of_class {
            wrong.push(
                "limits by class are for devices: a relay does not know the class of a request".to_owned(),
            );
        }
        if slots {
            wrong.push("limits.upload_slots is for devices: use upload_slots_max".to_owned());
        }
        if wrong.is_empty() { self.check() } else { Err(LimitsError(wrong)) }
    }
}

impl Limit {
    fn of(&mut self, class: Class) -> &mut Schedule {
        &mut self.classes[class as usize]
    }
}

#[cfg(test)]
mod tests {
    use distd_core::fleet::window::WeekTime;

    use super::*;

    #[test]
    fn every_mistake_is_reported() {
        let text = r#"
            upload_bytes_per_second = 0
            upload_slots = 0
            update.download_bytes_per_second = 100
            [[windows]]
            days = "mon-freitag"
            from = "8:00"
            to = "25:00"
            class = "urgent"
            download_bytes_per_second = 5
            [[windows]]
            from = "08:00"
            to = "08:00"
        "#;
        let file: LimitsFile = toml::from_str(text).expect("TOML");
        let wrong = file.check().expect_err("wrong").0;
        for (place, part) in [
            ("limits.upload_bytes_per_second", "4096"),
            ("limits.upload_slots", "minimum is 1"),
            ("limits.update.download_bytes_per_second", "4096"),
            ("limits.windows[0].class", "urgent"),
            ("limits.windows[0].days", "mon-fri"),
            ("limits.windows[0].from", "08:00"),
            ("limits.windows[0].to", "25:00"),
            ("limits.windows[0].download_bytes_per_second", "4096"),
            ("limits.windows[1]: the window is empty", "24:00"),
            ("limits.windows[1] changes nothing", "rate"),
        ] {
            let said = wrong.iter().any(|line| line.starts_with(place) && line.contains(part));
            assert!(said, "{place} is not in {wrong:#?}");
        }
        assert_eq!(wrong.len(), 10, "{wrong:#?}");
        let relay = file.check_without_classes().expect_err("wrong").0;
        assert_eq!(relay.len(), 12, "{relay:#?}");
        assert!(toml::from_str::<LimitsFile>("windows = [{ form = \"08:00\" }]").is_err(), "an unknown key");
    }

    #[test]
    fn windows_change_the_rate_of_all_traffic_or_of_a_class() {
        let text = r#"
            download_bytes_per_second = 8000000
            prefetch.download_bytes_per_second = 1000000
            windows = [
                { days = "mon-fri", from = "08:00", to = "18:00", download_bytes_per_second = 500000 },
                { days = "fri-sun", from = "22:00", to = "06:00", class = "prefetch", download_bytes_per_second = 4000000 },
            ]
        "#;
        let limits = toml::from_str::<LimitsFile>(text).expect("TOML").check().expect("right");
        let at = |day, hour: u16| WeekTime { day, minute: hour * 60 };
        let rates = |day, hour| {
            let (all, prefetch) = (&limits.download.all, &limits.download.classes[Class::Prefetch as usize]);
            (all.rate_at(at(day, hour)), prefetch.rate_at(at(day, hour)))
        };
        assert_eq!(rates(0, 9), (Some(500_000), Some(1_000_000)));
        assert_eq!(rates(0, 19), (Some(8_000_000), Some(1_000_000)));
        assert_eq!(rates(4, 23), (Some(8_000_000), Some(4_000_000)));
        assert_eq!(rates(0, 5), (Some(8_000_000), Some(4_000_000)), "since Sunday");
        assert_eq!(rates(3, 23), (Some(8_000_000), Some(1_000_000)));
        assert!(limits.upload.all.is_free());
        assert_eq!(parse_days("sat-mon,wed"), Ok(0b110_0101));
    }
}
