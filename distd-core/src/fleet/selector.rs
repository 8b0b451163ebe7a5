//! Selectors: which nodes, by their labels (docs/fleet.md, "Selectors").

use std::fmt;
use std::str::FromStr;

use super::labels::{FACT_PREFIX, LabelKey, LabelValue, Labels, ROLE_KEY};
use crate::bounds::{SELECTOR_BYTES_MAX, SELECTOR_TERMS_MAX, SELECTOR_VALUES_MAX};
use crate::role::Role;

/// Reason why a text is no selector.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SelectorError {
    /// The text does not parse from this character on.
    #[error("the selector cannot be read from character {position} on: {advice}")]
    Syntax {
        /// Number of the character, from 1.
        position: usize,
        /// The reason, and the text to write.
        advice: String,
    },
    /// The text is longer than the bound; its length in bytes.
    #[error(
        "a selector has at most {SELECTOR_BYTES_MAX} characters, this one has {0}: make a group of fewer terms"
    )]
    Length(usize),
    /// More terms than the bound.
    #[error("a selector has at most {SELECTOR_TERMS_MAX} terms: leave some out")]
    Terms,
    /// More values in one term than the bound.
    #[error("a term has at most {SELECTOR_VALUES_MAX} values: use a label that the nodes have in common")]
    Values,
}

/// Label or fact that a term is about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Subject {
    /// A label, or the role.
    Label(LabelKey),
    /// A fact; the key is without `fact.`.
    Fact(LabelKey),
}

impl Subject {
    /// The node's value.
    fn of<'a>(&self, labels: &'a Labels, role: Role) -> Option<&'a str> {
        match self {
            Self::Label(key) if key.as_str() == ROLE_KEY => Some(role.as_str()),
            Self::Label(key) => labels.get(key).map(LabelValue::as_str),
            Self::Fact(key) => labels.facts.get(key).map(LabelValue::as_str),
        }
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Label(key) => key.fmt(f),
            Self::Fact(key) => write!(f, "{FACT_PREFIX}{key}"),
        }
    }
}

/// Condition of a term.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Test {
    /// The value is one of these.
    In(Vec<LabelValue>),
    /// The value is none of these, or there is none.
    NotIn(Vec<LabelValue>),
    /// There is a value.
    Has,
    /// There is no value.
    HasNot,
}

/// One condition on a node.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Term {
    subject: Subject,
    test: Test,
}

impl Term {
    fn holds(&self, labels: &Labels, role: Role) -> bool {
        let value = self.subject.of(labels, role);
        let among = |values: &[LabelValue]| value.is_some_and(|own| values.iter().any(|v| v.as_str() == own));
        match &self.test {
            Test::In(values) => among(values),
            Test::NotIn(values) => !among(values),
            Test::Has => value.is_some(),
            Test::HasNot => value.is_none(),
        }
    }
}

impl fmt::Display for Term {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let subject = &self.subject;
        let list = |f: &mut fmt::Formatter<'_>, word: &str, values: &[LabelValue]| {
            let values: Vec<_> = values.iter().map(LabelValue::as_str).collect();
            write!(f, "{subject} {word} ({})", values.join(", "))
        };
        match &self.test {
            Test::In(values) if values.len() == 1 => write!(f, "{subject}={}", values[0]),
            Test::NotIn(values) if values.len() == 1 => write!(f, "{subject}!={}", values[0]),
            Test::In(values) => list(f, "in", values),
            Test::NotIn(values) => list(f, "notin", values),
            Test::Has => subject.fmt(f),
            Test::HasNot => write!(f, "!{subject}"),
        }
    }
}

/// Conditions on a node's labels, all of which hold for a selected node.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Selector(
    /// No term for the selector `*`.
    Vec<Term>,
);

impl Selector {
    /// The selector `*`, which selects every node.
    pub fn all() -> Self {
        Self(Vec::new())
    }

    /// Whether this is the selector `*`.
    pub fn is_all(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether a node with these labels and this role is selected.
    pub fn selects(&self, labels: &Labels, role: Role) -> bool {
        self.0.iter().all(|term| term.holds(labels, role))
    }

    /// Values that a selected node must have: for each term that names some, whether it is about a
    /// fact, the key without `fact.`, and the values of which the node has one. A node can have one
    /// of them from one source and another value from a source that counts more, so these
    /// conditions are necessary and not sufficient.
    pub fn required_values(&self) -> impl Iterator<Item = (bool, &LabelKey, &[LabelValue])> {
        self.0.iter().filter_map(|term| match (&term.subject, &term.test) {
            (Subject::Label(key), Test::In(values)) if key.as_str() != ROLE_KEY => {
                Some((false, key, &**values))
            }
            (Subject::Fact(key), Test::In(values)) => Some((true, key, &**values)),
            _ => None,
        })
    }

    /// Whether a term is about a fact. Such a selector decides no rights: a node reports its facts
    /// itself.
    pub fn uses_facts(&self) -> bool {
        self.0.iter().any(|term| matches!(term.subject, Subject::Fact(_)))
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_all() {
            return f.write_str("*");
        }
        for (at, term) in self.0.iter().enumerate() {
            f.write_str(if at == 0 { "" } else { "," })?;
            term.fmt(f)?;
        }
        Ok(())
    }
}

impl FromStr for Selector {
    type Err = SelectorError;

    fn from_str(s: &str) -> Result<Self, SelectorError> {
        if s.len() > SELECTOR_BYTES_MAX {
            return Err(SelectorError::Length(s.len()));
        }
        if s.trim() == "*" {
            return Ok(Self::all());
        }
        let mut parser = Parser { text: s, at: 0 };
        let mut terms = Vec::new();
        loop {
            terms.push(parser.term()?);
            if terms.len() > SELECTOR_TERMS_MAX {
                return Err(SelectorError::Terms);
            }
            if !parser.takes(',') {
                break;
            }
        }
        if !parser.is_at_end() {
            return Err(parser.refuses("put a comma between two terms"));
        }
        let selector = Self(terms);
        // The text that is printed and stored can be longer than the one that was read, as it has
        // blanks.
        let length = selector.to_string().len();
        if length > SELECTOR_BYTES_MAX { Err(SelectorError::Length(length)) } else { Ok(selector) }
    }
}

/// Reads a selector from left to right. Blanks between two words mean nothing.
struct Parser<'a> {
    text: &'a str,
    /// Byte that is read next.
    at: usize,
}

impl<'a> Parser<'a> {
    /// The error for the character that is read next.
    fn refuses(&self, advice: impl Into<String>) -> SelectorError {
        let position = self.text[..self.at].chars().count() + 1;
        SelectorError::Syntax { position, advice: advice.into() }
    }

    fn skip_blanks(&mut self) {
        self.at += self.rest().len() - self.rest().trim_start().len();
    }

    fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    fn is_at_end(&mut self) -> bool {
        self.skip_blanks();
        self.rest().is_empty()
    }

    /// Passes over a character, and blanks before it, if it is the next one.
    fn takes(&mut self, character: char) -> bool {
        self.skip_blanks();
        let taken = self.rest().starts_with(character);
        self.at += if taken { character.len_utf8() } else { 0 };
        taken
    }

    /// Passes over the characters that `belongs` accepts.
    fn word(&mut self, belongs: impl Fn(char) -> bool) -> &'a str {
        let rest = self.rest();
        let word = &rest[..rest.find(|c| !belongs(c)).unwrap_or(rest.len())];
        self.at += word.len();
        word
    }

    fn term(&mut self) -> Result<Term, SelectorError> {
        self.skip_blanks();
        if self.rest().starts_with('*') {
            return Err(self.refuses("* selects every node and stands alone; name labels, or write * alone"));
        }
        if self.takes('!') {
            return Ok(Term { subject: self.subject()?, test: Test::HasNot });
        }
        let subject = self.subject()?;
        let test = if self.takes('=') {
            if self.rest().starts_with('=') {
                return Err(self.refuses("write KEY=VALUE with one ="));
            }
            Test::In(vec![self.value()?])
        } else if self.takes('!') {
            if !self.takes('=') {
                return Err(self.refuses("write KEY!=VALUE, or !KEY for nodes without the key"));
            }
            Test::NotIn(vec![self.value()?])
        } else {
            self.skip_blanks();
            let before = self.at;
            match self.word(|c| c.is_ascii_alphabetic()) {
                "in" => Test::In(self.values()?),
                "notin" => Test::NotIn(self.values()?),
                _ => {
                    self.at = before;
                    Test::Has
                }
            }
        };
        if !self.is_at_end() && !self.rest().starts_with(',') {
            let advice = match test {
                Test::Has => {
                    format!(
                        "after {subject} write = or != and a value, in (A, B), notin (A, B), or a comma and the next term"
                    )
                }
                _ => "put a comma between two terms; a value has only letters, digits and . _ - / : + @"
                    .to_owned(),
            };
            return Err(self.refuses(advice));
        }
        Ok(Term { subject, test })
    }

    fn subject(&mut self) -> Result<Subject, SelectorError> {
        self.skip_blanks();
        let start = Self { ..*self };
        let key = self.word(|c| LabelKey::allows(c, false));
        if key.is_empty() {
            let advice =
                "write the key of a label here, such as site (a-z, 0-9 and . _ - /), or * for every node";
            return Err(start.refuses(advice));
        }
        let (is_fact, key) = match key.strip_prefix(FACT_PREFIX) {
            Some(key) => (true, key),
            None => (false, key),
        };
        let key: LabelKey = key.parse().map_err(|error| start.refuses(format!("{error}")))?;
        Ok(if is_fact { Subject::Fact(key) } else { Subject::Label(key) })
    }

    fn value(&mut self) -> Result<LabelValue, SelectorError> {
        self.skip_blanks();
        let start = Self { ..*self };
        self.word(LabelValue::allows).parse().map_err(|error| start.refuses(format!("{error}")))
    }

    /// The values between brackets.
    fn values(&mut self) -> Result<Vec<LabelValue>, SelectorError> {
        if !self.takes('(') {
            return Err(self.refuses("write the values in brackets: KEY in (A, B)"));
        }
        self.skip_blanks();
        if self.rest().starts_with(')') {
            return Err(self.refuses("write a value between the brackets, or KEY= for the empty value"));
        }
        let mut values = vec![self.value()?];
        while self.takes(',') {
            values.push(self.value()?);
            if values.len() > SELECTOR_VALUES_MAX {
                return Err(SelectorError::Values);
            }
        }
        if !self.takes(')') {
            let advice = "write a comma and the next value, or ) after the last one; a value has only letters, digits \
                          and . _ - / : + @";
            return Err(self.refuses(advice));
        }
        Ok(values)
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::{btree_map, vec};
    use proptest::prelude::*;

    use super::super::labels::{LabelMap, assignable_label};
    use super::*;

    fn map(labels: &[&str]) -> LabelMap {
        labels.iter().map(|text| assignable_label(text).expect("a label")).collect()
    }

    fn selects(selector: &str, labels: &Labels) -> bool {
        selector.parse::<Selector>().unwrap_or_else(|e| panic!("{selector}: {e}")).selects(labels, Role::Leaf)
    }

    #[test]
    fn each_term_holds_as_the_table_says() {
        let labels = Labels {
            token: map(&["site=12", "kind=till"]),
            operator: map(&["site=13", "empty="]),
            facts: map(&["os=9"]),
        };
        for yes in [
            "*",
            " * ",
            "site=13",
            "site = 13 , kind",
            "site!=12",
            "none!=12",
            "site in (11,13)",
            "site in(13)",
            "kind notin (a, b)",
            "none notin (a)",
            "kind",
            "!none",
            "empty=",
            "empty",
            "empty in (, x)",
            "role=leaf",
            "role!=relay",
            "role",
            "fact.os=9",
            "!fact.site",
            "fact.os",
            "!os",
        ] {
            assert!(selects(yes, &labels), "{yes}");
        }
        for no in [
            "site=12",
            "site!=13",
            "site in (11, 12)",
            "kind notin (till)",
            "!kind",
            "none",
            "none=",
            "none=12",
            "role=relay",
            "fact.os=8",
            "os=9",
            "site=13,none",
            "empty!=",
        ] {
            assert!(!selects(no, &labels), "{no}");
        }
        assert!("kind,fact.os=1".parse::<Selector>().expect("parses").uses_facts());
        assert!(!"kind,facts=1".parse::<Selector>().expect("parses").uses_facts());
    }

    #[test]
    fn a_key_may_be_a_word_of_the_grammar() {
        let labels = Labels { token: map(&["in=a", "notin=b"]), ..Labels::default() };
        assert!(selects("in in (a),notin=b,in,notin", &labels));
    }

    #[test]
    fn an_error_names_the_place_and_what_to_write() {
        let cases = [
            ("", 1, "key"),
            ("a,", 3, "key"),
            (",a", 1, "key"),
            ("a,,b", 3, "key"),
            ("Site=1", 1, "a-z"),
            ("-a", 1, "begin with a letter"),
            ("a=1 b=2", 5, "comma"),
            ("a=x y", 5, "comma"),
            ("a==1", 3, "one ="),
            ("a b", 3, "in (A, B)"),
            ("a in x", 6, "brackets"),
            ("a in ()", 7, "between the brackets"),
            ("a in (x", 8, ")"),
            ("a in (x y)", 9, ")"),
            ("a=(x)", 3, "comma"),
            ("a!b", 3, "KEY!=VALUE"),
            ("*,a", 1, "alone"),
            ("a,*", 3, "alone"),
            ("fact.", 1, "1 to 63"),
            ("ä=1", 1, "key"),
            ("a=ä", 3, "letters"),
            ("a=1,b=2,ö", 9, "key"),
            ("a>1", 2, "="),
        ];
        for (text, at, word) in cases {
            match text.parse::<Selector>() {
                Err(SelectorError::Syntax { position, advice }) => {
                    assert_eq!(position, at, "{text}: {advice}");
                    assert!(advice.contains(word), "{text}: {advice}");
                    assert!(!advice.contains('\n'), "{advice}");
                }
                other => panic!("{text}: {other:?}"),
            }
        }
    }

    #[test]
    fn selectors_are_bounded() {
        let terms = |n: usize| vec!["a"; n].join(",");
        assert!(terms(32).parse::<Selector>().is_ok());
        assert_eq!(terms(33).parse::<Selector>(), Err(SelectorError::Terms));
        let values = |n: usize| format!("a in ({})", vec!["b"; n].join(","));
        assert!(values(64).parse::<Selector>().is_ok());
        assert_eq!(values(65).parse::<Selector>(), Err(SelectorError::Values));
        assert_eq!("a".repeat(1025).parse::<Selector>(), Err(SelectorError::Length(1025)));
        // Printed with its blanks, the selector would be too long to be read again.
        let long = format!("a in ({})", vec!["b".repeat(16); 59].join(","));
        assert!(long.len() < 1024 && matches!(long.parse::<Selector>(), Err(SelectorError::Length(_))));
    }

    /// A term in a form that the naive evaluator understands: key, whether it is a fact, operator,
    /// values.
    type Naive = (String, bool, u8, Vec<String>);

    fn text_of((key, fact, operator, values): &Naive) -> String {
        let key = format!("{}{key}", if *fact { "fact." } else { "" });
        match operator {
            0 => format!("{key}={}", values[0]),
            1 => format!("{key}!={}", values[0]),
            2 => format!("{key} in ({})", values.join(",")),
            3 => format!("{key} notin({})", values.join(" , ")),
            4 => key,
            _ => format!("! {key}"),
        }
    }

    fn naive_holds((key, fact, operator, values): &Naive, labels: &[[Vec<(String, String)>; 3]; 1]) -> bool {
        let [[token, operators, facts]] = labels;
        let find = |list: &[(String, String)]| list.iter().rev().find(|l| l.0 == *key).map(|l| l.1.clone());
        let value = match (*fact, key.as_str()) {
            (true, _) => find(facts),
            (false, "role") => Some("relay".to_owned()),
            (false, _) => find(operators).or_else(|| find(token)),
        };
        let listed = |n: usize| values[..n].iter().any(|v| Some(v) == value.as_ref());
        match operator {
            0 => listed(1),
            1 => !listed(1),
            2 => listed(values.len()),
            3 => !listed(values.len()),
            4 => value.is_some(),
            _ => value.is_none(),
        }
    }

    fn key() -> impl Strategy<Value = String> {
        prop_oneof![
            Just("a".to_owned()),
            Just("b".to_owned()),
            Just("in".to_owned()),
            Just("role".to_owned())
        ]
    }

    fn value() -> impl Strategy<Value = String> {
        prop_oneof![
            Just(String::new()),
            Just("x".to_owned()),
            Just("relay".to_owned()),
            "[A-Z0-9:@/+._-]{1,3}"
        ]
    }

    fn terms() -> impl Strategy<Value = Vec<Naive>> {
        // A list of one empty value has no text of its own: `KEY in ()` is refused.
        let values = vec(value(), 1..4).prop_map(|mut values| {
            if values == [""] {
                values.push(String::new());
            }
            values
        });
        vec((key(), any::<bool>(), 0u8..6, values), 1..5)
    }

    fn labels() -> impl Strategy<Value = Vec<(String, String)>> {
        btree_map("[ab]|in|role", value(), 0..4).prop_map(|map| map.into_iter().collect())
    }

    proptest! {
        #[test]
        fn a_selector_survives_its_text(terms in terms()) {
            let text = terms.iter().map(text_of).collect::<Vec<_>>().join(" ,");
            let selector: Selector = text.parse().map_err(|e| TestCaseError::fail(format!("{text}: {e}")))?;
            let printed = selector.to_string();
            prop_assert_eq!(printed.parse::<Selector>(), Ok(selector), "{}", printed);
        }

        #[test]
        fn a_selector_selects_as_a_naive_evaluator(
            terms in terms(), token in labels(), operator in labels(), facts in labels()
        ) {
            let text = terms.iter().map(text_of).collect::<Vec<_>>().join(",");
            let selector: Selector = text.parse().map_err(|e| TestCaseError::fail(format!("{text}: {e}")))?;
            let parse = |list: &[(String, String)]| -> LabelMap {
                let pair = |(k, v): &(String, String)| (k.parse().expect("a key"), v.parse().expect("a value"));
                list.iter().map(pair).collect()
            };
            let own = Labels { token: parse(&token), operator: parse(&operator), facts: parse(&facts) };
            let lists = [[token, operator, facts]];
            let expected = terms.iter().all(|term| naive_holds(term, &lists));
            prop_assert_eq!(selector.selects(&own, Role::Relay), expected, "{}", text);
        }

        #[test]
        fn any_text_is_a_selector_or_an_error(text in "[a-c=!,() *.inot-]{0,40}|\\PC{0,20}") {
            if let Ok(selector) = text.parse::<Selector>() {
                prop_assert_eq!(selector.to_string().parse::<Selector>(), Ok(selector));
            }
        }
    }
}
