//! Errors as text: the one way to print an error together with its causes.

use std::error::Error;
use std::fmt;

/// Most causes that are printed: no chain of ours is longer, and a foreign one may be a circle.
const CAUSES_MAX: usize = 16;

/// Most errors that [`causes`] returns. A foreign chain may be a circle.
const LOOKED_AT_MAX: usize = 32;

/// Returns an error and its causes, outermost first.
pub fn causes<'e>(error: &'e (dyn Error + 'static)) -> impl Iterator<Item = &'e (dyn Error + 'static)> {
    std::iter::successors(Some(error), |error: &&'e (dyn Error + 'static)| {
        let error: &'e (dyn Error + 'static) = *error;
        // An `io::Error` made from another error hides that error: its `source` is already the next
        // one.
        match error.downcast_ref::<std::io::Error>().and_then(|e| e.get_ref()) {
            Some(inner) => Some(inner),
            None => error.source(),
        }
    })
    .take(LOOKED_AT_MAX)
}

/// An error and its causes, displayed on one line as `could not write: no space left`.
///
/// Many error types repeat their cause in their own message; a cause with the text of the error
/// above it, or with the text that the error above it ends in, is left out.
///
/// ```
/// use distd_core::error::Chain;
///
/// let io = std::io::Error::other("cable cut".parse::<u8>().unwrap_err());
/// assert_eq!(Chain(&io).to_string(), "invalid digit found in string");
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Chain<'e>(pub &'e (dyn Error + 'e));

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut above = self.0.to_string();
        f.write_str(&above)?;
        let mut next = self.0.source();
        for _ in 0..CAUSES_MAX {
            let Some(cause) = next else { break };
            let text = cause.to_string();
            if text != above && !above.ends_with(&format!(": {text}")) {
                write!(f, ": {text}")?;
            }
            above = text;
            next = cause.source();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    struct Layer(&'static str, Option<Box<Layer>>);

    impl fmt::Display for Layer {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(self.0)
        }
    }

    impl Error for Layer {
        fn source(&self) -> Option<&(dyn Error + 'static)> {
            self.1.as_deref().map(|cause| cause as _)
        }
    }

    fn layers(texts: &[&'static str]) -> Layer {
        let mut texts = texts.iter().rev();
        let last = Layer(texts.next().expect("a text"), None);
        texts.fold(last, |cause, text| Layer(text, Some(Box::new(cause))))
    }

    #[test]
    fn causes_follow_their_error_unless_it_names_them() {
        let cases: [(&[&'static str], &str); 4] = [
            (&["could not read", "cable cut"], "could not read: cable cut"),
            (&["could not read", "no", "no"], "could not read: no"),
            (&["could not read: no", "no", "cable cut"], "could not read: no: cable cut"),
            (&["a", "b", "a"], "a: b: a"),
        ];
        for (texts, expected) in cases {
            assert_eq!(Chain(&layers(texts)).to_string(), expected);
        }
    }

    #[test]
    fn a_long_chain_ends() {
        let long = layers(&["x", "y"].repeat(100));
        assert_eq!(Chain(&long).to_string().len(), 1 + 3 * CAUSES_MAX);
    }
}
