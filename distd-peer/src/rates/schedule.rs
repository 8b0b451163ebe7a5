//! [`Schedule`]: a rate that depends on the time of day.

use distd_core::fleet::window::{WeekTime, Window};
use jiff::Zoned;
use jiff::tz::TimeZone;

/// Reads the clock of the system, in its time zone if `zone` is `None`; UTC if it has none.
pub fn local_time(zone: Option<&TimeZone>) -> WeekTime {
    let now = Zoned::now();
    let now = match zone {
        Some(zone) => now.with_time_zone(zone.clone()),
        None => now,
    };
    WeekTime {
        day: now.weekday().to_monday_zero_offset().unsigned_abs(),
        minute: u16::from(now.hour().unsigned_abs()) * 60 + u16::from(now.minute().unsigned_abs()),
    }
}

/// Parses the name of a time zone, as in `Europe/Berlin`.
///
/// # Errors
/// The end of a sentence about the name.
pub fn time_zone(name: &str) -> Result<TimeZone, String> {
    TimeZone::get(name).map_err(|_| "is no time zone that this system knows, as in Europe/Berlin".to_owned())
}

/// A part of the week with its own rate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RateWindow {
    /// The part of the week.
    pub when: Window,
    /// Rate in bytes a second.
    pub rate: u64,
}

/// Rate in bytes a second over the week.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Schedule {
    /// Rate outside of all windows; `None` is no limit.
    pub otherwise: Option<u64>,
    /// Windows; where several overlap the first one counts.
    pub windows: Vec<RateWindow>,
}

impl Schedule {
    /// Returns the rate in force at a time; `None` is no limit.
    pub fn rate_at(&self, at: WeekTime) -> Option<u64> {
        self.windows.iter().find(|window| window.when.holds(at)).map(|window| window.rate).or(self.otherwise)
    }

    /// Iterates over all rates of the schedule.
    pub fn rates(&self) -> impl Iterator<Item = u64> + '_ {
        self.otherwise.into_iter().chain(self.windows.iter().map(|window| window.rate))
    }

    /// Whether there is no limit at any time.
    pub fn is_free(&self) -> bool {
        self.rates().next().is_none()
    }
}

#[cfg(test)]
mod tests {
    use distd_core::fleet::window::DAY_MINUTES;

    use super::*;

    #[test]
    fn a_window_holds_on_its_days_and_over_midnight() {
        let window = |text: &str, rate| RateWindow { when: text.parse().expect("a window"), rate };
        let office = window("mon-fri 08:00-18:00", 1);
        let night = window("sun 22:00-06:00", 2);
        let whole = window("sat 00:00-24:00", 3);
        let schedule = Schedule { otherwise: Some(9), windows: vec![office, night, whole] };
        for (day, hour, rate) in [
            (0, 7, 9),
            (0, 8, 1),
            (4, 17, 1),
            (4, 18, 9),
            (5, 0, 3),
            (5, 23, 3),
            (6, 8, 9),
            (6, 22, 2),
            (0, 5, 2),
            (0, 6, 9),
            (6, 5, 9),
        ] {
            let at = WeekTime { day, minute: hour * 60 };
            assert_eq!(schedule.rate_at(at), Some(rate), "{at:?}");
        }
        assert_eq!(Schedule::default().rate_at(WeekTime { day: 0, minute: 0 }), None);
    }

    #[test]
    fn the_system_knows_what_time_it_is() {
        for zone in [None, Some(&time_zone("Asia/Kolkata").expect("a zone"))] {
            let now = local_time(zone);
            assert!(now.day < 7 && now.minute < DAY_MINUTES);
        }
        assert!(time_zone("Nowhere/Land").is_err());
    }
}
