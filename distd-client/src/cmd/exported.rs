//! Exported logs: files with a JSON object a line.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _};
use std::path::Path;

use anyhow::Context as _;
use distd_client::failure::{Code, Failure};

/// Lines of a file, each at most `max` bytes; a longer one is cut in two.
///
/// # Errors
/// Failures with [`Code::Local`].
pub(super) fn lines(path: &Path, max: u64) -> anyhow::Result<impl Iterator<Item = anyhow::Result<Vec<u8>>>> {
    let failed = |error: anyhow::Error| anyhow::Error::from(Failure::new(Code::Local, error));
    let named = format!("could not read {}", path.display());
    let file = File::open(path).with_context(|| named.clone()).map_err(failed)?;
    let mut reader = BufReader::new(file);
    Ok(std::iter::from_fn(move || {
        let mut line = Vec::new();
        match reader.by_ref().take(max).read_until(b'\n', &mut line) {
            Ok(0) => None,
            Ok(_) => Some(Ok(line)),
            Err(error) => Some(Err(failed(anyhow::Error::from(error).context(named.clone())))),
        }
    }))
}
