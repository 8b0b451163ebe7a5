//! Conditions of a rollout beside its waves: when a device may begin, whether it may wait, and how
//! many devices may be under way at once (docs/rollouts.md, "Conditions").

use serde::{Deserialize, Serialize};

use super::super::labels::LabelKey;
use super::super::selector::Selector;
use super::super::window::Window;

/// Most windows of a rollout.
pub const WINDOWS_MAX: usize = 16;

/// Longest selector of the devices that come first, bytes.
pub const FIRST_MAX: usize = 512;

/// Latest time from which a rollout may be forced, unix seconds.
pub const FORCED_FROM_MAX: u64 = 1 << 40;

/// Longest period of a rate, seconds: 30 days.
pub const RATE_PERIOD_MAX: u64 = 30 * 24 * 3600;

/// Whether a device may put the release off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum Urgency {
    /// The device's own windows and its hook `consent` do not hold the release up.
    Forced,
    /// The release is installed only where the hook `consent` says so.
    Soft,
    /// An urgency that only later releases of distd know. A device begins nothing.
    #[serde(other)]
    Unknown,
}

/// A number of devices in a period.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Rate {
    /// Number of devices that may begin within the period, at least 1.
    pub devices: u64,
    /// The period, seconds.
    pub period: u64,
}

/// Number of devices of one group that may be unavailable at once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct GroupBudget {
    /// Key of the label whose value is the group, as `site`. Devices without the label are one
    /// group.
    pub by: String,
    /// Number of devices, at least 1.
    pub unavailable: u64,
}

/// Conditions of a rollout. The default has none.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Conditions {
    /// Parts of the week in which a device begins, by its own clock and time zone, as `mon-fri
    /// 22:00-05:00`; at most 16. The whole week when empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "openapi", schema(value_type = Vec<String>))]
    pub windows: Vec<Window>,
    /// Whether a device may put the release off; as its own settings say when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub urgency: Option<Urgency>,
    /// Time from which the rollout is forced, unix seconds, by the device's clock.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub forced_from: Option<u64>,
    /// Selector of devices that are in the first wave, whatever their point is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first: Option<String>,
    /// Number of devices that may be under way at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at_once: Option<u64>,
    /// Number of devices that may be unavailable at once in each group.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub budget: Option<GroupBudget>,
    /// Number of devices that may begin in a period.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate: Option<Rate>,
}

/// Reason why conditions cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConditionsError {
    /// There are too many windows.
    #[error("a rollout has at most {WINDOWS_MAX} windows, not {0}")]
    Windows(usize),
    /// The urgency is unknown.
    #[error("the urgency of a rollout is `forced` or `soft`")]
    Urgency,
    /// A forced rollout is forced from a later time too.
    #[error("a forced rollout is forced from its begin: leave the time out, or begin it soft")]
    ForcedTwice,
    /// The time from which the rollout is forced is too far away, unix seconds.
    #[error("the rollout would not be forced before {0} (unix seconds): choose an earlier time")]
    ForcedFrom(u64),
    /// The selector of the first devices.
    #[error("the selector of the devices that come first cannot be used: {0}")]
    First(String),
    /// A number of devices is zero.
    #[error("{0} is zero, so no device would ever begin: choose 1 or more")]
    Zero(&'static str),
    /// The label of a budget.
    #[error(
        "{0:?} is no label by which devices can be grouped: name a label that an operator or a token sets"
    )]
    Label(String),
    /// The period of a rate is out of bounds; seconds.
    #[error("a period of {0} s is out of bounds: choose 1 second to 30 days")]
    Period(u64),
}

impl Conditions {
    /// Whether there is none.
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }

    /// Whether a device asks the origin for a turn before it begins.
    pub fn needs_turns(&self) -> bool {
        self.at_once.is_some() || self.budget.is_some() || self.rate.is_some()
    }

    /// The selector of devices that come first.
    pub fn first(&self) -> Option<Selector> {
        self.first.as_ref().and_then(|text| text.parse().ok())
    }

    /// Checks the bounds.
    ///
    /// # Errors
    /// [`ConditionsError`].
    pub fn check(&self) -> Result<(), ConditionsError> {
        if self.windows.len() > WINDOWS_MAX {
            return Err(ConditionsError::Windows(self.windows.len()));
        }
        match (self.urgency, self.forced_from) {
            (Some(Urgency::Unknown), _) => return Err(ConditionsError::Urgency),
            (Some(Urgency::Forced), Some(_)) => return Err(ConditionsError::ForcedTwice),
            (_, Some(time)) if time > FORCED_FROM_MAX => return Err(ConditionsError::ForcedFrom(time)),
            _ => {}
        }
        if let Some(text) = &self.first {
            if text.len() > FIRST_MAX {
                return Err(ConditionsError::First(format!("it is longer than {FIRST_MAX} bytes")));
            }
            let selector: Selector =
                text.parse().map_err(|error| ConditionsError::First(format!("{error}")))?;
            if selector.uses_facts() {
                return Err(ConditionsError::First("it uses facts; give the devices a label".to_owned()));
            }
        }
        if self.at_once == Some(0) {
            return Err(ConditionsError::Zero("the number of devices at once"));
        }
        if let Some(GroupBudget { by, unavailable }) = &self.budget {
            if by.parse::<LabelKey>().is_err() || by.starts_with("fact.") {
                return Err(ConditionsError::Label(by.clone()));
            }
            if *unavailable == 0 {
                return Err(ConditionsError::Zero("the number of unavailable devices"));
            }
        }
        if let Some(Rate { devices, period }) = self.rate {
            if devices == 0 {
                return Err(ConditionsError::Zero("the number of devices in a period"));
            }
            if !(1..=RATE_PERIOD_MAX).contains(&period) {
                return Err(ConditionsError::Period(period));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn conditions(json: &str) -> Result<Conditions, serde_json::Error> {
        serde_json::from_str(json)
    }

    #[test]
    fn conditions_survive_their_json_and_the_default_is_empty() {
        let text = r#"{"windows":["sat 22:00-05:00"],"urgency":"soft","forced_from":7,"first":"ring=0","at_once":50,"budget":{"by":"site","unavailable":1},"rate":{"devices":100,"period":3600}}"#;
        let all = conditions(text).expect("conditions");
        assert_eq!(serde_json::to_string(&all).expect("JSON"), text);
        assert_eq!(all.check(), Ok(()));
        assert!(all.needs_turns());
        assert_eq!(serde_json::to_string(&Conditions::default()).expect("JSON"), "{}");
        assert_eq!(conditions("{}").expect("conditions"), Conditions::default());
        assert!(!Conditions::default().needs_turns());
        assert!(conditions(r#"{"wind":1}"#).is_err(), "a condition that is not known is not left out");
    }

    #[test]
    fn conditions_out_of_bounds_are_refused() {
        let check = |json: &str| conditions(json).expect("conditions").check();
        assert_eq!(check(r#"{"urgency":"later"}"#), Err(ConditionsError::Urgency));
        assert_eq!(check(r#"{"urgency":"forced","forced_from":9}"#), Err(ConditionsError::ForcedTwice));
        let late = FORCED_FROM_MAX + 1;
        assert_eq!(check(&format!(r#"{{"forced_from":{late}}}"#)), Err(ConditionsError::ForcedFrom(late)));
        assert!(matches!(check(r#"{"first":"a=="}"#), Err(ConditionsError::First(_))));
        assert!(matches!(check(r#"{"first":"fact.disk=big"}"#), Err(ConditionsError::First(_))));
        assert!(matches!(check(r#"{"at_once":0}"#), Err(ConditionsError::Zero(_))));
        assert!(matches!(
            check(r#"{"budget":{"by":"site","unavailable":0}}"#),
            Err(ConditionsError::Zero(_))
        ));
        for label in ["", "fact.disk", "a b"] {
            let json = format!(r#"{{"budget":{{"by":"{label}","unavailable":1}}}}"#);
            assert_eq!(check(&json), Err(ConditionsError::Label(label.to_owned())));
        }
        assert_eq!(check(r#"{"rate":{"devices":1,"period":0}}"#), Err(ConditionsError::Period(0)));
        assert!(matches!(check(r#"{"rate":{"devices":0,"period":1}}"#), Err(ConditionsError::Zero(_))));
        let windows = vec!["\"00:00-24:00\""; WINDOWS_MAX + 1].join(",");
        assert_eq!(
            check(&format!(r#"{{"windows":[{windows}]}}"#)),
            Err(ConditionsError::Windows(WINDOWS_MAX + 1))
        );
        assert!(conditions(r#"{"windows":["08:00-08:00"]}"#).is_err(), "a window that never opens");
    }
}
