//! The rollout in a channel's document, and what a device makes of it (docs/rollouts.md).

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::super::labels::Labels;
use super::super::selector::Selector;
use super::super::window::Window;
use super::conditions::{Conditions, Urgency, WINDOWS_MAX};
use super::waves::{RolloutId, WAVES_MAX, point_of, wave_of};
use crate::bounds::ROLLOUT_REQUIRES_MAX;
use crate::names::Name;
use crate::role::Role;
use crate::{ManifestId, NodeId};

/// Latest form of the documents that this build obeys. Form 2 has conditions that earlier releases
/// of distd do not know; a document without them is of form 1.
pub const ROLLOUT_FORM: u32 = 2;

/// Form of a document without conditions.
const PLAIN_FORM: u32 = 1;

/// Largest number of attempts that a rollout may allow a device.
pub const ATTEMPTS_MAX: u32 = 16;

/// Threshold of a wave: devices whose point is at most this are in the wave or in an earlier one.
/// As text 16 hexadecimal digits, because JSON numbers are exact only to 2^53.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Threshold(pub u64);

/// Reason why a text is no threshold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a threshold has 16 hexadecimal digits")]
pub struct ThresholdError;

impl FromStr for Threshold {
    type Err = ThresholdError;

    fn from_str(s: &str) -> Result<Self, ThresholdError> {
        let mut bytes = [0; 8];
        hex::decode_to_slice(s, &mut bytes).map_err(|_| ThresholdError)?;
        Ok(Self(u64::from_be_bytes(bytes)))
    }
}

impl TryFrom<String> for Threshold {
    type Error = ThresholdError;

    fn try_from(s: String) -> Result<Self, ThresholdError> {
        s.parse()
    }
}

impl fmt::Display for Threshold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl From<Threshold> for String {
    fn from(threshold: Threshold) -> Self {
        threshold.to_string()
    }
}

/// State of a rollout, as devices see it. A rollout that has ended is in no document.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RolloutState {
    /// Devices in open waves install the release.
    Open,
    /// No device begins, by an operator's order.
    Paused,
    /// No device begins: too many failures, or an operator's order.
    Halted,
    /// A state that only later releases of distd know. No device begins.
    #[serde(other)]
    Unknown,
}

/// A rollout, as the signed document of its channel has it. Devices of earlier releases of distd
/// ignore it and follow the channel's own release.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RolloutDoc {
    /// Form of the document. A device that does not know the form begins nothing, since a
    /// restriction that it does not understand may exclude it.
    pub form: u32,
    /// Identity of the rollout.
    pub id: RolloutId,
    /// Release that devices in open waves install.
    pub version: Name,
    /// Manifest of that release.
    pub manifest: ManifestId,
    /// State.
    pub state: RolloutState,
    /// Threshold of each wave, in order; at most [`WAVES_MAX`].
    pub waves: Vec<Threshold>,
    /// Number of waves that are open, the first ones.
    pub open: usize,
    /// Number of attempts after which a device gives up, 1 to [`ATTEMPTS_MAX`].
    pub attempts: u32,
    /// Time after which a device ends an attempt as failed, seconds.
    pub timeout: u64,
    /// Selector of the devices that take part; all without one.
    #[serde(rename = "for", default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<String>,
    /// Versions of which one must run before; at most [`ROLLOUT_REQUIRES_MAX`]. A device with
    /// another version installs the first of them before.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub requires: Vec<Name>,
    /// Parts of the week in which a device begins, by its own clock; the whole week when empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub windows: Vec<Window>,
    /// Whether a device may put the release off.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub urgency: Option<Urgency>,
    /// Time from which the rollout is forced, unix seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub forced_from: Option<u64>,
    /// Selector of devices that are in the first wave, whatever their point is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first: Option<String>,
    /// Whether a device asks the origin for a turn before it begins.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub turns: bool,
}

/// A device's knowledge of itself, on which it decides.
#[derive(Clone, Copy, Debug)]
pub struct Device<'a> {
    /// Its node id.
    pub node: &'a NodeId,
    /// Its labels; `None` while it does not know them.
    pub labels: Option<&'a Labels>,
    /// Version of the product that it has installed last; `None` when it has none.
    pub installed: Option<&'a Name>,
    /// Number of attempts at this rollout that have failed on it.
    pub failures: u32,
    /// Whether it asks for a turn before it begins, where the rollout wants that.
    pub asks_for_turns: bool,
}

/// Reason why a device does not install the release of a rollout.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "reason")]
pub enum Held {
    /// An operator pinned the device to a version.
    Pinned,
    /// The rollout is for devices with other labels.
    Labels,
    /// The device does not know its labels yet.
    UnknownLabels,
    /// Its wave is not open; number of the wave, from 1, and number of waves.
    Wave {
        /// The device's wave, from 1.
        wave: usize,
        /// Number of waves.
        of: usize,
    },
    /// The rollout is paused.
    Paused,
    /// The rollout is halted.
    Halted,
    /// As many attempts as the rollout allows have failed on this device.
    Failed {
        /// Number of attempts.
        attempts: u32,
    },
    /// No window of the device or of the rollout is open.
    Window,
    /// The device's hook `consent` has not agreed.
    Consent,
    /// As many other devices are under way as the rollout allows.
    Turn,
    /// Somebody at the device put updates off.
    Deferred {
        /// End of that, unix seconds by the device's clock.
        until: u64,
    },
    /// Somebody at the device took it back from the release.
    TakenBack,
    /// The document is of a later form.
    Form,
    /// A reason that only later releases of distd know.
    #[serde(other)]
    Unknown,
}

impl Held {
    /// The reason as a word, without its numbers.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Pinned => "pinned",
            Self::Labels => "labels",
            Self::UnknownLabels => "unknown_labels",
            Self::Wave { .. } => "wave",
            Self::Paused => "paused",
            Self::Halted => "halted",
            Self::Failed { .. } => "failed",
            Self::Window => "window",
            Self::Consent => "consent",
            Self::Turn => "turn",
            Self::Deferred { .. } => "deferred",
            Self::TakenBack => "taken_back",
            Self::Form => "form",
            Self::Unknown => "unknown",
        }
    }
}

impl fmt::Display for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pinned => f.write_str("an operator pinned this device to its version"),
            Self::Labels => f.write_str("the rollout is for devices with other labels"),
            Self::UnknownLabels => f.write_str(
                "the rollout is for devices with certain labels, and no parent has told this device its own yet",
            ),
            Self::Wave { wave, of } => write!(f, "wave {wave} of {of}, in which this device is, is not open yet"),
            Self::Paused => f.write_str("the rollout is paused"),
            Self::Halted => f.write_str("the rollout is halted"),
            Self::Failed { attempts: 1 } => f.write_str("the release failed on this device"),
            Self::Failed { attempts } => write!(f, "the release failed {attempts} times on this device"),
            Self::Window => f.write_str("no window for updates of this device or of the rollout is open"),
            Self::Consent => f.write_str("the hook `consent` of this device has not agreed yet"),
            Self::Turn => f.write_str("as many other devices are under way as the rollout allows"),
            Self::Deferred { .. } => f.write_str("somebody at this device put updates off"),
            Self::TakenBack => f.write_str("somebody at this device took it back from the release"),
            Self::Unknown => f.write_str("a reason that only later releases of distd know"),
            Self::Form => f.write_str(
                "the rollout is of a form that only later releases of distd know: update distd on this device",
            ),
        }
    }
}

/// Decision of a device about a rollout.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// The device installs the release of the rollout, or stays on it.
    Follow,
    /// The device installs this version first, because the rollout requires it.
    Via(Name),
    /// The device stays on the channel's own release.
    Hold(Held),
}

impl RolloutDoc {
    /// Stands for a document that this build cannot read. A device begins nothing because of it,
    /// and follows the channel's own release.
    ///
    /// # Panics
    /// Never: the version is a name.
    pub fn unreadable() -> Self {
        Self {
            form: u32::MAX,
            id: RolloutId([0; 16]),
            version: "unreadable".parse().expect("a name"),
            manifest: ManifestId::NOTHING,
            state: RolloutState::Unknown,
            waves: Vec::new(),
            open: 0,
            attempts: 0,
            timeout: 0,
            selector: None,
            requires: Vec::new(),
            windows: Vec::new(),
            urgency: None,
            forced_from: None,
            first: None,
            turns: false,
        }
    }

    /// The document with the conditions of its rollout, and the form that they need.
    #[must_use]
    pub fn with_conditions(self, conditions: &Conditions) -> Self {
        let doc = Self {
            windows: conditions.windows.clone(),
            urgency: conditions.urgency,
            forced_from: conditions.forced_from,
            first: conditions.first.clone(),
            turns: conditions.needs_turns(),
            ..self
        };
        let is_plain = doc.windows.is_empty()
            && (doc.urgency, doc.forced_from, doc.first.as_ref()) == (None, None, None)
            && !doc.turns;
        Self { form: if is_plain { PLAIN_FORM } else { ROLLOUT_FORM }, ..doc }
    }

    /// Whether the device's own windows and its hook `consent` do not hold the release up at `now`
    /// (unix seconds).
    pub fn is_forced(&self, now: u64) -> bool {
        self.urgency == Some(Urgency::Forced) || self.forced_from.is_some_and(|from| from <= now)
    }

    /// Whether the release is installed at `now` (unix seconds) only where the device's hook
    /// `consent` says so.
    pub fn is_soft(&self, now: u64) -> bool {
        self.urgency == Some(Urgency::Soft) && !self.is_forced(now)
    }

    /// Whether the parts of the document fit each other.
    pub fn is_consistent(&self) -> bool {
        (1..=WAVES_MAX).contains(&self.waves.len())
            && self.waves.is_sorted()
            && self.waves.last() == Some(&Threshold(u64::MAX))
            && self.open <= self.waves.len()
            && (1..=ATTEMPTS_MAX).contains(&self.attempts)
            && self.requires.len() <= ROLLOUT_REQUIRES_MAX
            && self.windows.len() <= WINDOWS_MAX
            && self.urgency != Some(Urgency::Unknown)
    }

    /// Wave of a device with these labels, from 0; `None` in a document that is not consistent. A
    /// device that does not know its labels yet is not taken for one that comes first.
    pub fn wave(&self, node: &NodeId, labels: Option<&Labels>) -> Option<usize> {
        let thresholds: Vec<u64> = self.waves.iter().map(|threshold| threshold.0).collect();
        let first = self.first.as_ref().and_then(|text| text.parse::<Selector>().ok());
        let is_first =
            matches!((&first, labels), (Some(first), Some(labels)) if first.selects(labels, Role::Leaf));
        wave_of(&thresholds, point_of(&self.id, node, is_first))
    }

    /// Decides for a device. Depends on no clock and asks nobody, so a device that is offline
    /// decides as any other.
    pub fn decide(&self, device: &Device<'_>) -> Decision {
        // A device that has the release keeps it: only an order of the channel takes it back.
        if device.installed == Some(&self.version) {
            return Decision::Follow;
        }
        let wave = match self.wave(device.node, device.labels) {
            Some(wave) if self.form <= ROLLOUT_FORM && self.is_consistent() => wave,
            _ => return Decision::Hold(Held::Form),
        };
        if let Some(selector) = &self.selector {
            // A selector that does not parse is of a later form.
            let Ok(selector) = selector.parse::<Selector>() else { return Decision::Hold(Held::Form) };
            match device.labels {
                None => return Decision::Hold(Held::UnknownLabels),
                Some(labels) if !selector.selects(labels, Role::Leaf) => return Decision::Hold(Held::Labels),
                Some(_) => {}
            }
        }
        if self.first.as_ref().is_some_and(|text| text.parse::<Selector>().is_err()) {
            return Decision::Hold(Held::Form);
        }
        if device.failures >= self.attempts {
            return Decision::Hold(Held::Failed { attempts: device.failures });
        }
        match self.state {
            RolloutState::Open if wave < self.open && self.turns && !device.asks_for_turns => {
                Decision::Hold(Held::Turn)
            }
            RolloutState::Open if wave < self.open => match (device.installed, self.requires.first()) {
                // A device without a release has nothing to update from.
                (Some(installed), Some(first)) if !self.requires.contains(installed) => {
                    Decision::Via(first.clone())
                }
                _ => Decision::Follow,
            },
            RolloutState::Open => Decision::Hold(Held::Wave { wave: wave + 1, of: self.waves.len() }),
            RolloutState::Paused => Decision::Hold(Held::Paused),
            RolloutState::Halted => Decision::Hold(Held::Halted),
            RolloutState::Unknown => Decision::Hold(Held::Form),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::waves::point;
    use super::*;

    fn document(waves: Vec<u64>, open: usize, state: RolloutState) -> RolloutDoc {
        RolloutDoc {
            form: PLAIN_FORM,
            id: RolloutId([7; 16]),
            version: "2".parse().expect("a name"),
            manifest: ManifestId([1; 32]),
            state,
            waves: waves.into_iter().map(Threshold).collect(),
            open,
            attempts: 2,
            timeout: 3600,
            selector: None,
            requires: Vec::new(),
            ..RolloutDoc::unreadable()
        }
    }

    fn device<'a>(node: &'a NodeId, installed: Option<&'a Name>, failures: u32) -> Device<'a> {
        Device { node, installed, failures, labels: None, asks_for_turns: false }
    }

    #[test]
    fn a_document_without_conditions_is_of_the_form_that_all_devices_know() {
        let plain = document(vec![u64::MAX], 1, RolloutState::Open);
        assert_eq!(plain.clone().with_conditions(&Conditions::default()).form, 1);
        for condition in [
            r#"{"windows":["00:00-24:00"]}"#,
            r#"{"urgency":"soft"}"#,
            r#"{"forced_from":1}"#,
            r#"{"first":"ring=0"}"#,
            r#"{"at_once":1}"#,
        ] {
            let conditions: Conditions = serde_json::from_str(condition).expect("conditions");
            let doc = plain.clone().with_conditions(&conditions);
            assert_eq!(doc.form, 2, "{condition}");
            let json = serde_json::to_string(&doc).expect("JSON");
            assert!(json.len() < 400, "{json}");
            assert_eq!(serde_json::from_str::<RolloutDoc>(&json).expect("a document"), doc);
        }
    }

    #[test]
    fn a_device_that_comes_first_is_in_the_first_wave_and_others_are_where_they_were() {
        let node = NodeId([2; 16]);
        let threshold = point(&RolloutId([7; 16]), &node) - 1;
        let doc = RolloutDoc {
            first: Some("ring=0".to_owned()),
            ..document(vec![threshold, u64::MAX], 1, RolloutState::Open)
        };
        let label = |text: &str| {
            let label = crate::fleet::assignable_label(text).expect("a label");
            Labels { operator: [label].into(), ..Labels::default() }
        };
        let (first, other) = (label("ring=0"), label("ring=1"));
        let with = |labels| Device { labels, ..device(&node, None, 0) };
        assert_eq!(doc.decide(&with(Some(&first))), Decision::Follow);
        for labels in [Some(&other), None] {
            assert_eq!(doc.decide(&with(labels)), Decision::Hold(Held::Wave { wave: 2, of: 2 }));
        }
        let bad = RolloutDoc { first: Some("ring==".to_owned()), ..doc };
        assert_eq!(bad.decide(&with(Some(&first))), Decision::Hold(Held::Form));
    }

    #[test]
    fn only_a_device_that_asks_for_turns_begins_where_turns_are_given() {
        let node = NodeId([2; 16]);
        let doc = RolloutDoc { turns: true, ..document(vec![u64::MAX], 1, RolloutState::Open) };
        assert_eq!(doc.decide(&device(&node, None, 0)), Decision::Hold(Held::Turn));
        let asks = Device { asks_for_turns: true, ..device(&node, None, 0) };
        assert_eq!(doc.decide(&asks), Decision::Follow);
    }

    #[test]
    fn a_soft_rollout_is_forced_from_a_time() {
        let doc = |urgency, forced_from| RolloutDoc {
            urgency,
            forced_from,
            ..document(vec![u64::MAX], 1, RolloutState::Open)
        };
        let both = |doc: RolloutDoc, now| (doc.is_soft(now), doc.is_forced(now));
        assert_eq!(both(doc(None, None), 9), (false, false));
        assert_eq!(both(doc(Some(Urgency::Forced), None), 0), (false, true));
        assert_eq!(both(doc(Some(Urgency::Soft), Some(10)), 9), (true, false));
        assert_eq!(both(doc(Some(Urgency::Soft), Some(10)), 10), (false, true));
        let later = doc(Some(Urgency::Unknown), None);
        assert_eq!(later.decide(&device(&NodeId([2; 16]), None, 0)), Decision::Hold(Held::Form));
    }

    #[test]
    fn a_rollout_for_some_labels_is_for_devices_that_know_they_have_them() {
        let node = NodeId([2; 16]);
        let document = |selector: &str| RolloutDoc {
            selector: Some(selector.to_owned()),
            ..document(vec![u64::MAX], 1, RolloutState::Open)
        };
        let label = crate::fleet::assignable_label("site=12").expect("a label");
        let labels = Labels { operator: [label].into(), ..Labels::default() };
        let fresh = device(&node, None, 0);
        let knowing = Device { labels: Some(&labels), ..fresh };
        assert_eq!(document("site=12").decide(&knowing), Decision::Follow);
        assert_eq!(document("site=13").decide(&knowing), Decision::Hold(Held::Labels));
        assert_eq!(document("site=12").decide(&fresh), Decision::Hold(Held::UnknownLabels));
        assert_eq!(document("site==").decide(&knowing), Decision::Hold(Held::Form));
    }

    #[test]
    fn a_device_installs_a_required_version_first() {
        let node = NodeId([2; 16]);
        let name = |text: &str| text.parse::<Name>().expect("a name");
        let open = document(vec![u64::MAX], 1, RolloutState::Open);
        let document = RolloutDoc { requires: vec![name("1.9"), name("1.8")], ..open };
        let decide = |installed: Option<&Name>| document.decide(&device(&node, installed, 0));
        assert_eq!(decide(Some(&name("1.0"))), Decision::Via(name("1.9")));
        assert_eq!(decide(Some(&name("1.8"))), Decision::Follow);
        assert_eq!(decide(None), Decision::Follow);
        let closed = RolloutDoc { open: 0, ..document.clone() };
        assert_eq!(
            closed.decide(&device(&node, Some(&name("1.0")), 0)),
            Decision::Hold(Held::Wave { wave: 1, of: 1 })
        );
    }

    #[test]
    fn the_document_is_this_json() {
        let document = document(vec![1 << 60, u64::MAX], 1, RolloutState::Open);
        let json = serde_json::to_string(&document).expect("JSON");
        assert_eq!(
            json,
            format!(
                "{{\"form\":1,\"id\":\"{}\",\"version\":\"2\",\"manifest\":\"{}\",\"state\":\"open\",\
                 \"waves\":[\"1000000000000000\",\"ffffffffffffffff\"],\"open\":1,\"attempts\":2,\"timeout\":3600}}",
                "07".repeat(16),
                "01".repeat(32)
            )
        );
        assert_eq!(serde_json::from_str::<RolloutDoc>(&json).expect("a document"), document);
        let later = json.replace("open\",", "drained\",");
        assert_eq!(
            serde_json::from_str::<RolloutDoc>(&later).expect("a document").state,
            RolloutState::Unknown
        );
    }

    #[test]
    fn a_device_begins_only_in_an_open_wave_of_an_open_rollout() {
        let (node, version) = (NodeId([2; 16]), "2".parse::<Name>().expect("a name"));
        let point = point(&RolloutId([7; 16]), &node);
        let first = vec![point, u64::MAX];
        let second = vec![point - 1, u64::MAX];
        let fresh = device(&node, None, 0);
        let decide = |waves: &Vec<u64>, open, state| document(waves.clone(), open, state).decide(&fresh);
        assert_eq!(decide(&first, 1, RolloutState::Open), Decision::Follow);
        assert_eq!(decide(&first, 0, RolloutState::Open), Decision::Hold(Held::Wave { wave: 1, of: 2 }));
        assert_eq!(decide(&second, 1, RolloutState::Open), Decision::Hold(Held::Wave { wave: 2, of: 2 }));
        assert_eq!(decide(&second, 2, RolloutState::Open), Decision::Follow);
        assert_eq!(decide(&first, 1, RolloutState::Paused), Decision::Hold(Held::Paused));
        assert_eq!(decide(&first, 1, RolloutState::Halted), Decision::Hold(Held::Halted));
        assert_eq!(decide(&first, 1, RolloutState::Unknown), Decision::Hold(Held::Form));
        // The release is not offered again where it failed, and not taken away where it is.
        let open = document(first.clone(), 1, RolloutState::Open);
        assert_eq!(open.decide(&device(&node, None, 1)), Decision::Follow);
        assert_eq!(open.decide(&device(&node, None, 2)), Decision::Hold(Held::Failed { attempts: 2 }));
        for state in [RolloutState::Paused, RolloutState::Halted, RolloutState::Unknown] {
            let document = document(second.clone(), 0, state);
            assert_eq!(document.decide(&device(&node, Some(&version), 9)), Decision::Follow);
        }
    }

    #[test]
    fn a_device_holds_where_it_does_not_understand_the_document() {
        let node = NodeId([2; 16]);
        let good = document(vec![u64::MAX], 1, RolloutState::Open);
        assert_eq!(good.decide(&device(&node, None, 0)), Decision::Follow);
        for bad in [
            RolloutDoc::unreadable(),
            RolloutDoc { form: ROLLOUT_FORM + 1, ..good.clone() },
            RolloutDoc { open: 2, ..good.clone() },
            RolloutDoc { attempts: 0, ..good.clone() },
            RolloutDoc { waves: Vec::new(), open: 0, ..good.clone() },
            RolloutDoc { waves: vec![Threshold(0)], ..good.clone() },
            RolloutDoc {
                waves: vec![Threshold(u64::MAX), Threshold(0), Threshold(u64::MAX)],
                ..good.clone()
            },
            RolloutDoc { waves: vec![Threshold(u64::MAX); 17], ..good },
        ] {
            assert_eq!(bad.decide(&device(&node, None, 0)), Decision::Hold(Held::Form), "{bad:?}");
        }
    }

    proptest! {
        /// Opening a wave never stops a device that was allowed to begin, and no device begins
        /// before its wave.
        #[test]
        fn a_device_begins_with_its_wave(
            node: [u8; 16], mut waves in proptest::collection::vec(any::<u64>(), 0..8)
        ) {
            waves.sort_unstable();
            waves.push(u64::MAX);
            let (node, count) = (NodeId(node), waves.len());
            let wave = document(waves.clone(), 0, RolloutState::Open).wave(&node, None).expect("a wave");
            for open in 0..=count {
                let decision = document(waves.clone(), open, RolloutState::Open).decide(&device(&node, None, 0));
                prop_assert_eq!(decision == Decision::Follow, wave < open);
            }
        }
    }
}
