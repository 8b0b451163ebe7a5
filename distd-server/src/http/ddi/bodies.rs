//! Bodies that DDI devices send, read leniently: clients send ids as numbers or texts, details as a
//! list or one text, and now and then text that is no JSON.

use distd_core::bounds::{LABEL_KEY_MAX, LABEL_VALUE_MAX, LABELS_MAX};
use distd_core::fleet::{LabelKey, LabelMap, LabelValue};
use serde_json::Value;

/// Details of a feedback that are looked at, the last ones.
const DETAILS_MAX: usize = 3;

/// Characters of a detail that are kept.
const DETAIL_MAX: usize = 200;

/// What a feedback says about its action.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// The device is at work.
    Works,
    /// The device has done it.
    Succeeded,
    /// The device could not do it, or refuses.
    Failed,
    /// The device stopped.
    Canceled,
}

/// Feedback of a device about an action.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Feedback {
    execution: String,
    finished: String,
    /// Steps that are done, of how many.
    steps: Option<(u64, u64)>,
    /// The last details.
    details: Vec<String>,
}

impl Feedback {
    /// Reads a body; `None` when it says nothing about an action.
    pub(super) fn read(body: &[u8]) -> Option<Self> {
        let text = String::from_utf8_lossy(body);
        let feedback = match parse(&text) {
            Some(value) => Self::of(value.get("status")?),
            None => Self {
                execution: word(&text, "execution"),
                finished: word(&text, "finished"),
                ..Self::default()
            },
        };
        let says_nothing = feedback.execution.is_empty() && feedback.finished.is_empty();
        (!says_nothing).then_some(feedback)
    }

    fn of(status: &Value) -> Self {
        let text = |value: Option<&Value>| value.and_then(Value::as_str).unwrap_or_default().to_lowercase();
        let result = status.get("result");
        let progress = result.and_then(|result| result.get("progress")).or_else(|| status.get("progress"));
        let step = |name| progress.and_then(|progress| progress.get(name)).and_then(Value::as_u64);
        let details = match status.get("details") {
            Some(Value::Array(details)) => {
                let texts: Vec<&str> = details.iter().filter_map(Value::as_str).collect();
                texts[texts.len().saturating_sub(DETAILS_MAX)..].iter().map(|text| short(text)).collect()
            }
            Some(Value::String(detail)) => vec![short(detail)],
            _ => Vec::new(),
        };
        Self {
            execution: text(status.get("execution")),
            finished: text(result.and_then(|result| result.get("finished"))),
            steps: step("of").filter(|of| *of > 0).and_then(|of| Some((step("cnt")?.min(of), of))),
            details,
        }
    }

    /// What it says about its action.
    pub(super) fn answer(&self) -> Answer {
        match (self.execution.as_str(), self.finished.as_str()) {
            ("closed", "success") => Answer::Succeeded,
            ("closed" | "rejected", _) => Answer::Failed,
            ("canceled", _) => Answer::Canceled,
            // Without the one word the other decides.
            ("", "success") => Answer::Succeeded,
            ("", "failure") => Answer::Failed,
            _ => Answer::Works,
        }
    }

    /// Whether the device says that it installs.
    pub(super) fn installs(&self) -> bool {
        self.details.iter().any(|detail| detail.to_ascii_lowercase().contains("install"))
    }

    /// How far the device is, in words.
    pub(super) fn progress(&self) -> String {
        let last = self.details.last().map_or("", String::as_str);
        match self.steps.filter(|(_, of)| *of > 1) {
            Some((cnt, of)) if last.is_empty() => format!("step {cnt} of {of}"),
            Some((cnt, of)) => format!("step {cnt} of {of}: {last}"),
            None => last.to_owned(),
        }
    }

    /// The last details in one text.
    pub(super) fn last_words(&self) -> String {
        self.details.iter().filter(|detail| !detail.is_empty()).cloned().collect::<Vec<_>>().join("; ")
    }
}

/// Parses JSON, also with raw control characters in its texts.
fn parse(text: &str) -> Option<Value> {
    serde_json::from_str(text).ok().or_else(|| {
        let cleaned: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        serde_json::from_str(&cleaned).ok()
    })
}

/// The text behind a key in something that is nearly JSON; empty without one.
fn word(text: &str, key: &str) -> String {
    let behind = text.split_once(&format!("\"{key}\"")).map(|(_, behind)| behind.trim_start());
    let value = behind.and_then(|behind| behind.strip_prefix(':')?.trim_start().strip_prefix('"'));
    let value = value.and_then(|value| value.split_once('"')).map(|(value, _)| value);
    value.filter(|value| value.len() <= 20).unwrap_or_default().to_lowercase()
}

fn short(text: &str) -> String {
    text.trim().chars().map(|c| if c.is_control() { ' ' } else { c }).take(DETAIL_MAX).collect()
}

/// Whether somebody at the device agreed to an action; `None` for a body that says neither.
pub(super) fn confirmed(body: &[u8]) -> Option<bool> {
    let text = String::from_utf8_lossy(body);
    let said = match parse(&text) {
        Some(value) => value.get("confirmation")?.as_str()?.to_lowercase(),
        None => word(&text, "confirmation"),
    };
    match said.as_str() {
        "confirmed" => Some(true),
        "denied" => Some(false),
        _ => None,
    }
}

/// How attributes change those of before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Merge,
    Replace,
    Remove,
}

/// Attributes of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Attributes {
    mode: Mode,
    facts: LabelMap,
}

impl Attributes {
    /// Reads a body; `None` when it has no attributes. Keys and values are made into those of
    /// facts.
    pub(super) fn read(body: &[u8]) -> Option<Self> {
        let value = parse(&String::from_utf8_lossy(body))?;
        let mode = match value.get("mode").and_then(Value::as_str).unwrap_or_default() {
            "replace" => Mode::Replace,
            "remove" => Mode::Remove,
            _ => Mode::Merge,
        };
        let data = value.get("data")?.as_object()?;
        let facts = data.iter().take(LABELS_MAX).filter_map(|(key, value)| {
            let value = match value {
                Value::String(text) => text.clone(),
                Value::Null => String::new(),
                other => other.to_string(),
            };
            Some((fact_key(key)?, fact_value(&value)))
        });
        Some(Self { mode, facts: facts.collect() })
    }

    /// The facts of a device that had those of `before`.
    pub(super) fn applied_to(self, mut before: LabelMap) -> LabelMap {
        match self.mode {
            Mode::Replace => self.facts,
            Mode::Merge => {
                // The new ones stay where there are too many.
                for (key, value) in self.facts {
                    before.insert(key.clone(), value);
                    while before.len() > LABELS_MAX {
                        let old = before.keys().find(|other| **other != key).cloned();
                        old.and_then(|old| before.remove(&old));
                    }
                }
                before
            }
            Mode::Remove => {
                before.retain(|key, _| !self.facts.contains_key(key));
                before
            }
        }
    }
}

fn fact_key(text: &str) -> Option<LabelKey> {
    let of = |c: char| match c.to_ascii_lowercase() {
        c if c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '.' | '_' | '-' | '/') => c,
        _ => '-',
    };
    let key: String =
        text.chars().map(of).skip_while(|c| !c.is_ascii_alphanumeric()).take(LABEL_KEY_MAX).collect();
    key.parse().ok()
}

fn fact_value(text: &str) -> LabelValue {
    let of = |c: char| match c {
        c if c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | '/' | ':' | '+' | '@') => c,
        _ => '_',
    };
    let value: String = text.trim().chars().map(of).take(LABEL_VALUE_MAX).collect();
    value.parse().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Feedback {
        Feedback::read(text.as_bytes()).expect(text)
    }

    #[test]
    fn feedback_of_each_client_is_read() {
        let rauc = read(
            r#"{"id":"11","time":"20261128T082558","status":{"result":{"finished":"none"},"execution":"proceeding","details":["40% Installing image"]}}"#,
        );
        assert_eq!((rauc.answer(), rauc.installs()), (Answer::Works, true));
        assert_eq!(rauc.progress(), "40% Installing image");
        let swupdate = read(
            r#"{"id":11,"time":"x","status":{"result":{"finished":"none","progress":{"cnt":2,"of":5}},"execution":"proceeding","details":["a","b"]}}"#,
        );
        assert_eq!((swupdate.answer(), swupdate.progress().as_str()), (Answer::Works, "step 2 of 5: b"));
        let done = read(r#"{"status":{"result":{"finished":"success"},"execution":"closed","details":[]}}"#);
        assert_eq!((done.answer(), done.last_words().as_str()), (Answer::Succeeded, ""));
        for (execution, finished, answer) in [
            ("closed", "failure", Answer::Failed),
            ("closed", "none", Answer::Failed),
            ("rejected", "none", Answer::Failed),
            ("canceled", "success", Answer::Canceled),
            ("scheduled", "none", Answer::Works),
            ("download", "none", Answer::Works),
            ("CLOSED", "SUCCESS", Answer::Succeeded),
        ] {
            let text =
                format!(r#"{{"status":{{"result":{{"finished":"{finished}"}},"execution":"{execution}"}}}}"#);
            assert_eq!(read(&text).answer(), answer, "{text}");
        }
    }

    #[test]
    fn feedback_that_is_no_json_still_closes_its_action() {
        // SWUpdate, when an artifact had no hash: a raw line feed inside a text.
        let failed = read(
            "{\"id\": 11, \"status\":{\"result\":{\"finished\": \"failure\"},\"execution\":\"closed\",\"details\":[\"no hash\nstop\"]}}",
        );
        assert_eq!((failed.answer(), failed.last_words().as_str()), (Answer::Failed, "no hash stop"));
        let broken = read(
            "{\"status\": {\"result\": {\"finished\" : \"failure\"}, \"execution\": \"closed\", \"details\": [\"a\"b\"]",
        );
        assert_eq!(broken.answer(), Answer::Failed);
        for nothing in ["", "{}", "[]", "{\"status\":7}", "\"closed\"", "{\"status\":{\"details\":[\"x\"]}}"]
        {
            assert_eq!(Feedback::read(nothing.as_bytes()), None, "{nothing}");
        }
        let deep = "[".repeat(60_000);
        assert_eq!(Feedback::read(deep.as_bytes()), None);
        assert_eq!(Feedback::read(&[0xff; 1000]), None);
    }

    #[test]
    fn long_texts_and_lists_are_cut() {
        let details: Vec<String> = (0..1000).map(|n| format!("{n} {}", "x".repeat(1000))).collect();
        let body = serde_json::json!({"status": {"execution": "closed", "result": {"finished": "failure"}, "details": details}});
        let feedback = read(&body.to_string());
        assert_eq!(feedback.details.len(), 3);
        assert!(feedback.last_words().starts_with("997 x") && feedback.last_words().len() < 700);
        let odd = read(
            r#"{"status":{"execution":"proceeding","result":{"progress":{"cnt":9,"of":2}},"details":"one"}}"#,
        );
        assert_eq!(odd.progress(), "step 2 of 2: one");
    }

    #[test]
    fn attributes_become_facts() {
        let facts =
            |text: &str, before: LabelMap| Attributes::read(text.as_bytes()).expect(text).applied_to(before);
        let shown =
            |map: &LabelMap| map.iter().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>().join(",");
        let first = facts(
            r#"{"data":{"HW Revision":"a b","_x":7,"version":"1.2","!!":"","n":null}}"#,
            LabelMap::new(),
        );
        assert_eq!(shown(&first), "hw-revision=a_b,n=,version=1.2,x=7");
        let merged = facts(r#"{"mode":"merge","data":{"version":"2"}}"#, first.clone());
        assert_eq!(shown(&merged), "hw-revision=a_b,n=,version=2,x=7");
        assert_eq!(shown(&facts(r#"{"mode":"replace","data":{"v":"2"}}"#, first.clone())), "v=2");
        assert_eq!(
            shown(&facts(r#"{"mode":"remove","data":{"x":"","n":""}}"#, first.clone())),
            "hw-revision=a_b,version=1.2"
        );
        let many: serde_json::Map<String, Value> =
            (0..500).map(|n| (format!("k{n}"), Value::from("v"))).collect();
        let all = facts(&serde_json::json!({"data": many}).to_string(), first);
        assert_eq!(all.len(), LABELS_MAX);
        assert!(Attributes::read(b"{\"data\":[]}").is_none() && Attributes::read(b"x").is_none());
    }

    #[test]
    fn a_confirmation_is_one_of_two_words() {
        assert_eq!(confirmed(br#"{"confirmation":"confirmed","code":10,"details":[]}"#), Some(true));
        assert_eq!(confirmed(br#"{"confirmation":"DENIED"}"#), Some(false));
        for other in [&b"{}"[..], b"", br#"{"confirmation":"later"}"#] {
            assert_eq!(confirmed(other), None);
        }
    }
}
