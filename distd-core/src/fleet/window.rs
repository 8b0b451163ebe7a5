//! Windows of the week in which something may happen: `mon-fri 22:00-05:00`.
//!
//! A window is of the clock on the wall. When clocks are put forward, the minutes that are left out
//! are in no window; when they are put back, those that come twice are in it twice.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Minutes in a day.
pub const DAY_MINUTES: u16 = 24 * 60;

/// Names of the days, Monday first.
const DAYS: [&str; 7] = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"];

/// Every day.
const EVERY_DAY: u8 = 0x7f;

/// Day of the week and time of day, in some time zone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WeekTime {
    /// Day of the week, Monday is 0.
    pub day: u8,
    /// Minute of the day, `0..1440`.
    pub minute: u16,
}

/// A part of the week.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Window {
    /// Days on which the window begins, one bit each, Monday lowest.
    pub days: u8,
    /// First minute of the day.
    pub from: u16,
    /// First minute after the window; on the next day if it is not after `from`.
    pub to: u16,
}

/// Reason why a text is no window.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WindowError {
    /// The days.
    #[error("{0:?} are no days: write days as in \"mon-fri\" or \"sat,sun\"")]
    Days(String),
    /// One of the times.
    #[error("{0:?} is no time: write a time as in \"08:00\"")]
    Time(String),
    /// The text has no two times.
    #[error("{0:?} is no window: write it as in \"mon-fri 22:00-05:00\"")]
    Form(String),
    /// The window has no minute.
    #[error("the window is empty: for a whole day write \"00:00-24:00\"")]
    Empty,
}

impl Window {
    /// Makes a window from its parts.
    ///
    /// # Errors
    /// [`WindowError::Empty`] when it would never be open.
    pub fn new(days: u8, from: u16, to: u16) -> Result<Self, WindowError> {
        match from == to || from >= DAY_MINUTES || days & EVERY_DAY == 0 {
            true => Err(WindowError::Empty),
            false => Ok(Self { days, from, to }),
        }
    }

    /// Whether the window is open at a time.
    pub fn holds(&self, at: WeekTime) -> bool {
        let begins = |day: u8| self.days & (1 << day) != 0;
        if self.from < self.to {
            return begins(at.day) && (self.from..self.to).contains(&at.minute);
        }
        let before = (at.day + 6) % 7;
        let evening = begins(at.day) && (self.from..DAY_MINUTES).contains(&at.minute);
        evening || (begins(before) && at.minute < self.to)
    }
}

/// Whether one of the windows is open. No window at all is open all the time.
pub fn is_open(windows: &[Window], at: WeekTime) -> bool {
    windows.is_empty() || windows.iter().any(|window| window.holds(at))
}

/// Parses `mon-fri`, `sat,sun` or `fri-mon` into a set with one bit for each day, Monday lowest.
///
/// # Errors
/// [`WindowError::Days`].
pub fn parse_days(text: &str) -> Result<u8, WindowError> {
    let day = |name: &str| DAYS.iter().position(|known| *known == name.trim().to_ascii_lowercase());
    let set = text.split(',').try_fold(0, |set, part| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (mut at, last) = (day(first)?, day(last)?);
        let mut set = set | 1 << last;
        while at != last {
            set |= 1 << at;
            at = (at + 1) % 7;
        }
        Some(set)
    });
    set.ok_or_else(|| WindowError::Days(text.to_owned()))
}

/// Parses `HH:MM`, up to `24:00`, into minutes of the day.
///
/// # Errors
/// [`WindowError::Time`].
pub fn parse_minute(text: &str) -> Result<u16, WindowError> {
    let parse = || {
        let (hour, minute) = text.split_once(':')?;
        let two = |text: &str| (text.len() == 2).then(|| text.parse::<u16>().ok()).flatten();
        let (hour, minute) = (two(hour)?, two(minute)?);
        (minute < 60 && hour * 60 + minute <= DAY_MINUTES).then_some(hour * 60 + minute)
    };
    parse().ok_or_else(|| WindowError::Time(text.to_owned()))
}

impl FromStr for Window {
    type Err = WindowError;

    fn from_str(text: &str) -> Result<Self, WindowError> {
        let trimmed = text.trim();
        let (days, times) = trimmed.rsplit_once(' ').unwrap_or(("", trimmed));
        let days = if days.is_empty() { EVERY_DAY } else { parse_days(days)? };
        let (from, to) = times.split_once('-').ok_or_else(|| WindowError::Form(text.to_owned()))?;
        Self::new(days, parse_minute(from)?, parse_minute(to)?)
    }
}

impl TryFrom<String> for Window {
    type Error = WindowError;

    fn try_from(text: String) -> Result<Self, WindowError> {
        text.parse()
    }
}

impl From<Window> for String {
    fn from(window: Window) -> Self {
        window.to_string()
    }
}

impl fmt::Display for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.days & EVERY_DAY != EVERY_DAY {
            let named = DAYS.iter().enumerate().filter(|(day, _)| self.days & (1 << day) != 0);
            let names: Vec<&str> = named.map(|(_, name)| *name).collect();
            write!(f, "{} ", names.join(","))?;
        }
        let time = |minute: u16| format!("{:02}:{:02}", minute / 60, minute % 60);
        write!(f, "{}-{}", time(self.from), time(self.to))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_window_is_days_and_two_times() {
        for (text, shown) in [
            ("mon-fri 08:00-18:00", "mon,tue,wed,thu,fri 08:00-18:00"),
            ("SAT, sun 22:00-05:00", "sat,sun 22:00-05:00"),
            ("fri-mon 00:00-24:00", "mon,fri,sat,sun 00:00-24:00"),
            (" 02:00-04:30 ", "02:00-04:30"),
        ] {
            assert_eq!(text.parse::<Window>().expect(text).to_string(), shown);
        }
        for (wrong, part) in [
            ("", "no window"),
            ("mon", "no window"),
            ("funday 08:00-09:00", "no days"),
            ("8:00-09:00", "no time"),
            ("08:00-25:00", "no time"),
            ("08:00-08:00", "empty"),
            ("24:00-08:00", "empty"),
        ] {
            let error = wrong.parse::<Window>().expect_err(wrong).to_string();
            assert!(error.contains(part), "{wrong}: {error}");
        }
    }

    #[test]
    fn a_window_over_midnight_belongs_to_the_day_on_which_it_begins() {
        let windows = ["sun 22:00-06:00".parse::<Window>().expect("a window")];
        let open = |day, hour: u16| is_open(&windows, WeekTime { day, minute: hour * 60 });
        assert!(!open(6, 21) && open(6, 22) && open(0, 5) && !open(0, 6) && !open(6, 5) && !open(0, 22));
        assert!(is_open(&[], WeekTime { day: 3, minute: 0 }));
    }

    proptest! {
        #[test]
        fn a_window_survives_its_text_and_is_open_as_long_as_it_says(
            days in 1u8..0x80, from in 0u16..DAY_MINUTES, to in 0u16..=DAY_MINUTES
        ) {
            prop_assume!(from != to);
            let window = Window::new(days, from, to).expect("a window");
            prop_assert_eq!(window.to_string().parse::<Window>().expect("a window"), window);
            let minutes = (0..7u8).flat_map(|day| (0..DAY_MINUTES).map(move |minute| WeekTime { day, minute }));
            let open = minutes.filter(|at| window.holds(*at)).count();
            let length = usize::from(if from < to { to - from } else { DAY_MINUTES - from + to });
            prop_assert_eq!(open, length * days.count_ones() as usize);
        }
    }
}
