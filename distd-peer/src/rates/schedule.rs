//! [`Schedule`]: a rate that depends on the time of day.

/// Minutes in a day.
const DAY: u16 = 24 * 60;

/// Day of the week and time of day in this node's time zone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LocalTime {
    /// Day of the week, Monday is 0.
    pub day: u8,
    /// Minute of the day, `0..1440`.
    pub minute: u16,
}

impl LocalTime {
    /// Reads the clock and the time zone of the system; UTC if no zone is set.
    pub fn now() -> Self {
        let now = jiff::Zoned::now();
        Self {
            day: now.weekday().to_monday_zero_offset().unsigned_abs(),
            minute: u16::from(now.hour().unsigned_abs()) * 60 + u16::from(now.minute().unsigned_abs()),
        }
    }
}

/// A part of the week with its own rate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// Days on which the window begins, one bit each, Monday lowest.
    pub days: u8,
    /// First minute of the day.
    pub from: u16,
    /// First minute after the window; on the next day if it is not after `from`.
    pub to: u16,
    /// Rate in bytes a second.
    pub rate: u64,
}

impl Window {
    fn holds(&self, at: LocalTime) -> bool {
        let begins = |day: u8| self.days & (1 << day) != 0;
        if self.from < self.to {
            return begins(at.day) && (self.from..self.to).contains(&at.minute);
        }
        let before = (at.day + 6) % 7;
        (begins(at.day) && (self.from..DAY).contains(&at.minute)) || (begins(before) && at.minute < self.to)
    }
}

/// Rate in bytes a second over the week.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Schedule {
    /// Rate outside of all windows; `None` is no limit.
    pub otherwise: Option<u64>,
    /// Windows; where several overlap the first one counts.
    pub windows: Vec<Window>,
}

impl Schedule {
    /// Returns the rate in force at a time; `None` is no limit.
    pub fn rate_at(&self, at: LocalTime) -> Option<u64> {
        self.windows.iter().find(|window| window.holds(at)).map(|window| window.rate).or(self.otherwise)
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
    use super::*;

    #[test]
    fn a_window_holds_on_its_days_and_over_midnight() {
        let office = Window { days: 0b001_1111, from: 8 * 60, to: 18 * 60, rate: 1 };
        let night = Window { days: 0b100_0000, from: 22 * 60, to: 6 * 60, rate: 2 };
        let whole = Window { days: 0b010_0000, from: 0, to: DAY, rate: 3 };
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
            let at = LocalTime { day, minute: hour * 60 };
            assert_eq!(schedule.rate_at(at), Some(rate), "{at:?}");
        }
        assert_eq!(Schedule::default().rate_at(LocalTime { day: 0, minute: 0 }), None);
    }

    #[test]
    fn the_system_knows_what_time_it_is() {
        let now = LocalTime::now();
        assert!(now.day < 7 && now.minute < DAY);
    }
}
