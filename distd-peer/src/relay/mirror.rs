//! Signed metadata that passed through a relay, kept on disk. While no parent answers, the relay
//! itself answers devices' questions from it, also after a restart.
//!
//! Nothing is verified here: devices verify, and TUF's own expiry bounds how old the metadata they
//! get can be. The kept files are one state of the repository: the timestamp is replaced only
//! together with everything it needs for the targets that devices of the office ask for.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use distd_core::error::Chain;
use distd_core::names::{Name, release_target};
use tokio::sync::Notify;

use crate::trust::files;
use crate::trust::tuf::differences::is_same_file;
use crate::trust::tuf::wire::{
    Answer, HELD_TARGETS_MAX, QUERY_BYTES_MAX, QUERY_ROLES_MAX, Query, held_prefix, role_file, target_hash,
    target_of, version_of,
};
use crate::trust::tuf::{
    AnswerError, Answerer, ChannelDoc, DirStore, MetadataStore, StoreError, is_served_name,
};

/// Maximum number of files: all metadata of a realm with 512 bins, and the targets that an office
/// asks for.
const FILES_MAX: usize = 2048;

/// Maximum size of a file, bytes.
const FILE_BYTES_MAX: usize = 1 << 20;

/// Maximum number of device questions whose targets are kept up to date: an office runs few
/// products.
const WANTED_MAX: usize = 10;

/// Maximum number of targets of one question: a channel or release, and the product's patches.
const WANTED_NAMES_MAX: usize = 4;

/// Maximum size of the targets remembered after newer ones have replaced them, with their names,
/// bytes.
const REPLACED_BYTES_MAX: usize = 1 << 20;

/// Maximum number of these targets.
const REPLACED_MAX: usize = 256;

const TIMESTAMP: &str = "timestamp.json";

/// The files of a realm's repository that devices need.
pub(super) struct Mirror {
    store: Arc<DirStore>,
    answerer: Answerer,
    /// Targets of the latest questions, oldest first.
    wanted: Mutex<VecDeque<Vec<String>>>,
    /// File that keeps `wanted` over a restart.
    wanted_path: PathBuf,
    /// Targets that newer ones have replaced, oldest first: answers for devices that still hold
    /// them are packed over them.
    replaced: Mutex<VecDeque<(String, Bytes)>>,
    /// Notified when a device was sent something newer than the kept metadata.
    pub(super) news: Notify,
}

impl Mirror {
    /// Creates a mirror that keeps files in `dir`, and the wanted targets in a file beside it.
    pub(super) fn new(dir: &Path) -> Self {
        let store = Arc::new(DirStore::new(dir));
        let wanted_path = dir.with_extension("wanted.json");
        let wanted = match files::read(&wanted_path) {
            Ok(Some(bytes)) => serde_json::from_slice(&bytes).unwrap_or_default(),
            _ => VecDeque::new(),
        };
        let answerer = Answerer::new(store.clone());
        let (wanted, replaced) = (Mutex::new(wanted), Mutex::default());
        Self { store, answerer, wanted, wanted_path, replaced, news: Notify::new() }
    }

    fn wanted(&self) -> MutexGuard<'_, VecDeque<Vec<String>>> {
        self.wanted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Remembers the targets of a question that was answered, to keep them up to date from now on.
    /// Only names that a realm could have are remembered, and only if the answer contained one of
    /// the targets, so that a device cannot fill the list with invented names.
    async fn note(&self, question: &[u8], files: &[(String, Bytes)]) {
        let Ok(query) = Query::decode(question) else { return };
        let targets: Vec<String> =
            query.targets.into_iter().take(WANTED_NAMES_MAX).filter(|name| is_target(name)).collect();
        let brought =
            |target: &String| files.iter().any(|(name, _)| target_of(name).as_ref() == Some(target));
        if !targets.iter().any(brought) {
            return;
        }
        let text = {
            let mut wanted = self.wanted();
            let was_known = wanted.contains(&targets);
            wanted.retain(|known| *known != targets);
            wanted.push_back(targets);
            while wanted.len() > WANTED_MAX {
                wanted.pop_front();
            }
            if was_known {
                return;
            }
            serde_json::to_vec(&*wanted).expect("strings always encode")
        };
        let path = self.wanted_path.clone();
        let written = tokio::task::spawn_blocking(move || files::write_atomic(&path, &text, 0o600)).await;
        if let Ok(Err(error)) = written {
            let error = tracing::field::display(Chain(&error));
            tracing::warn!(
                error,
                "list of wanted targets could not be written; it will be lost at the next restart"
            );
        }
    }

    fn replaced(&self) -> MutexGuard<'_, VecDeque<(String, Bytes)>> {
        self.replaced.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns a file with the bytes of `name`, also a target that a newer one has replaced.
    async fn base(&self, name: &str) -> Result<Option<Bytes>, StoreError> {
        if !is_served_name(name) {
            return Ok(None);
        }
        if let Some(bytes) = self.store.get(name).await? {
            return Ok(Some(bytes));
        }
        if let Some((_, bytes)) = self.replaced().iter().find(|(known, _)| is_same_file(known, name)) {
            return Ok(Some(bytes.clone()));
        }
        match self.store.list().await?.iter().find(|known| is_same_file(known, name)) {
            Some(known) => self.store.get(known).await,
            None => Ok(None),
        }
    }

    /// Whether this relay has all files that a question names as held. Only then can it read an
    /// answer that is packed over them.
    pub(super) async fn has_all(&self, question: &Query) -> Result<bool, StoreError> {
        let snapshot = (question.snapshot > 0).then(|| format!("{}.snapshot.json", question.snapshot));
        let roles = question.roles.iter().map(|(role, version)| format!("{version}.{role}.json"));
        let names: HashSet<String> = self.store.list().await?.into_iter().collect();
        if !roles.chain(snapshot).all(|name| names.contains(&name)) {
            return Ok(false);
        }
        let replaced = self.replaced();
        let targets = names.iter().chain(replaced.iter().map(|(name, _)| name));
        let prefixes: HashSet<u64> =
            targets.filter_map(|name| Some(held_prefix(&target_hash(name)?))).collect();
        Ok(question.held.iter().all(|prefix| prefixes.contains(prefix)))
    }

    /// Reads an answer. `None` if it is malformed, or packed over files that are not here.
    async fn read(&self, answer: &[u8]) -> Result<Option<Vec<(String, Bytes)>>, StoreError> {
        let mut bases = BTreeMap::new();
        for name in Answer::bases_of(answer).unwrap_or_default() {
            if let Some(bytes) = self.base(&name).await? {
                bases.insert(name, bytes);
            }
        }
        let read = Answer::decode_over(answer, |name| bases.get(name).cloned());
        Ok(read.ok().map(|answer| answer.files))
    }

    /// Returns the question whose answer brings the kept metadata up to date. The answer is empty
    /// if nothing has changed.
    pub(super) async fn question(&self) -> Result<Query, StoreError> {
        let mut query = Query { root: 1, latest: true, on_path: true, differences: true, ..Query::default() };
        query.targets = self.wanted().iter().flatten().cloned().collect();
        query.targets.sort_unstable();
        query.targets.dedup();
        let Some(timestamp) = self.timestamp().await? else { return Ok(query) };
        query.timestamp = timestamp;
        let names = self.store.list().await?;
        let mut newest = newest(&names);
        // Targets that the answer would contain: the wanted ones, and the releases that wanted
        // channels point to.
        let path_of = |target: &str| names.iter().find(|name| target_of(name).as_deref() == Some(target));
        for target in &query.targets {
            let Some(path) = path_of(target) else { continue };
            query.held.extend(target_hash(path).map(|sha256| held_prefix(&sha256)));
            if target.starts_with("channels/")
                && let Some(bytes) = self.store.get(path).await?
                && let Ok(doc) = serde_json::from_slice::<ChannelDoc>(&bytes)
                && let Some(path) = path_of(&release_target(&doc.product, &doc.version))
            {
                query.held.extend(target_hash(path).map(|sha256| held_prefix(&sha256)));
            }
        }
        query.held.sort_unstable();
        query.held.dedup();
        query.held.truncate(HELD_TARGETS_MAX);
        query.root = newest.remove("root").unwrap_or(1);
        query.snapshot = newest.remove("snapshot").unwrap_or(0);
        let roles = newest.into_iter().take(QUERY_ROLES_MAX);
        query.roles = roles.map(|(role, version)| (role.to_owned(), version)).collect();
        // Bins that the question does not name are sent again, but a question that is too long is
        // answered by nobody.
        while query.encode().len() > QUERY_BYTES_MAX && query.roles.pop().is_some() {}
        Ok(query)
    }

    /// Version of the kept timestamp; `None` if none is kept.
    pub(super) async fn timestamp(&self) -> Result<Option<u64>, StoreError> {
        let Some(bytes) = self.store.get(TIMESTAMP).await? else { return Ok(None) };
        Ok(version_of(&bytes))
    }

    /// Stores the files of an answer to [`Self::question`], the timestamp last. Returns whether the
    /// answer could be read.
    pub(super) async fn keep(&self, answer: &Bytes) -> Result<bool, StoreError> {
        let Some(files) = self.read(answer).await? else { return Ok(false) };
        self.keep_files(&files).await?;
        if let Some((_, bytes)) = files.iter().find(|(name, _)| name == TIMESTAMP) {
            self.store.put(TIMESTAMP, bytes.clone()).await?;
        }
        Ok(true)
    }

    /// Stores verified files of one state of the repository, the timestamp last, and remembers the
    /// targets of `question`.
    pub(super) async fn keep_state(
        &self,
        question: &[u8],
        files: Vec<(String, Bytes)>,
    ) -> Result<(), StoreError> {
        self.note(question, &files).await;
        self.keep_files(&files).await?;
        match files.into_iter().find(|(name, _)| name == TIMESTAMP) {
            Some((_, bytes)) => self.store.put(TIMESTAMP, bytes).await,
            None => Ok(()),
        }
    }

    /// Stores the files of an answer to a device. A newer timestamp may need more files than the
    /// answer contained; in that case [`Self::news`] triggers a question for all of them.
    pub(super) async fn keep_of_device(&self, question: &[u8], answer: &Bytes) -> Result<(), StoreError> {
        let Some(files) = self.read(answer).await? else { return Ok(()) };
        self.note(question, &files).await;
        self.keep_files(&files).await?;
        if let Some((_, bytes)) = files.iter().find(|(name, _)| name == TIMESTAMP)
            && version_of(bytes) != self.timestamp().await?
        {
            self.news.notify_one();
        }
        Ok(())
    }

    async fn keep_files(&self, files: &[(String, Bytes)]) -> Result<(), StoreError> {
        let fits = |(name, bytes): &&(String, Bytes)| {
            name != TIMESTAMP && is_served_name(name) && bytes.len() <= FILE_BYTES_MAX
        };
        let mut listed: Option<Vec<String>> = None;
        for (name, bytes) in files.iter().filter(fits) {
            // A file with a version or hash in its name changes only if the origin was restored
            // from a backup.
            if self.store.get(name).await?.as_ref() == Some(bytes) {
                continue;
            }
            let mut names = match listed.take() {
                Some(names) => names,
                None => self.store.list().await?,
            };
            if names.len() >= FILES_MAX {
                self.prune().await?;
                names = self.store.list().await?;
            }
            self.store.put(name, bytes.clone()).await?;
            // Each target has one current file.
            if let Some(target) = target_of(name) {
                let is_old = |old: &mut String| target_of(old).as_ref() == Some(&target);
                for old in names.extract_if(.., is_old).filter(|old| old != name) {
                    if let Some(bytes) = self.store.get(&old).await? {
                        self.remember(old.clone(), bytes);
                    }
                    self.store.delete(&old).await?;
                }
            }
            names.push(name.clone());
            listed = Some(names);
        }
        Ok(())
    }

    /// Remembers a target that a newer one replaces.
    fn remember(&self, name: String, bytes: Bytes) {
        let mut replaced = self.replaced();
        replaced.retain(|(known, _)| *known != name);
        replaced.push_back((name, bytes));
        let mut bytes: usize = replaced.iter().map(|(name, bytes)| name.len() + bytes.len()).sum();
        while replaced.len() > REPLACED_MAX || bytes > REPLACED_BYTES_MAX {
            let Some((name, content)) = replaced.pop_front() else { break };
            bytes -= name.len() + content.len();
        }
    }

    /// Removes older versions of roles, and all targets. A target that is still in use
    /// is fetched at the next question for it.
    async fn prune(&self) -> Result<(), StoreError> {
        let names = self.store.list().await?;
        let newest = newest(&names);
        for name in &names {
            let is_old = match role_file(name) {
                // Devices walk the roots one by one, starting from any old one.
                Some(("root", _)) => false,
                Some((role, version)) => newest.get(role) != Some(&version),
                None => target_hash(name).is_some(),
            };
            if is_old {
                self.store.delete(name).await?;
            }
        }
        Ok(())
    }

    /// Answers a device's question from the kept files. `None` if the device knows of newer
    /// metadata.
    ///
    /// # Errors
    /// [`AnswerError`] if a needed file is not kept.
    pub(super) async fn answer(&self, question: &[u8]) -> Result<Option<Bytes>, AnswerError> {
        let held = Query::decode(question)?.timestamp;
        match self.timestamp().await? {
            Some(kept) if kept >= held => {
                self.answerer.answer(question).await.map(|answer| Some(answer.into()))
            }
            _ => Ok(None),
        }
    }
}

/// Returns the newest version of every role among file names.
fn newest(names: &[String]) -> BTreeMap<&str, u64> {
    let mut newest = BTreeMap::new();
    for (role, version) in names.iter().filter_map(|name| role_file(name)) {
        let at = newest.entry(role).or_insert(version);
        *at = version.max(*at);
    }
    newest
}

/// Whether a realm could have a target with this name.
fn is_target(name: &str) -> bool {
    let is_name = |part: &str| part.parse::<Name>().is_ok();
    match name.split('/').collect::<Vec<_>>()[..] {
        ["releases" | "channels", product, of] => is_name(product) && is_name(of),
        ["patches", product] => is_name(product),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(files: &[(&str, &str)]) -> Bytes {
        let file =
            |(name, text): &(&str, &str)| ((*name).to_owned(), Bytes::copy_from_slice(text.as_bytes()));
        Answer { files: files.iter().map(file).collect() }.encode().into()
    }

    fn timestamp(version: u64) -> String {
        format!(r#"{{"signed":{{"version":{version}}}}}"#)
    }

    #[tokio::test]
    async fn metadata_that_passed_through_is_kept_and_refreshed_by_version() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let dir = dir.path().join("metadata");
        let mirror = Mirror::new(&dir);
        let targets = vec!["channels/os/stable".to_owned(), "patches/os".to_owned()];
        let asked = Query { targets: targets.clone(), timestamp: 7, ..Query::default() }.encode();
        // Neither invented names nor targets that nobody has are remembered.
        for made_up in ["x".repeat(9000), "channels/os/none".to_owned()] {
            let made_up = Query { targets: vec![made_up], ..Query::default() }.encode();
            mirror
                .keep_of_device(&made_up, &answer(&[("targets/channels/os/00.stable", "{}")]))
                .await
                .expect("kept");
        }
        assert!(mirror.question().await.expect("a question").targets.is_empty());
        mirror
            .keep_of_device(&asked, &answer(&[("targets/channels/os/01.stable", "{}")]))
            .await
            .expect("kept");
        assert!(
            mirror.store.get("targets/channels/os/00.stable").await.expect("read").is_none(),
            "superseded"
        );
        assert_eq!(mirror.question().await.expect("a question").timestamp, 0);
        let state = answer(&[
            ("timestamp.json", &timestamp(7)),
            ("3.snapshot.json", "{}"),
            ("2.channels.json", "{}"),
            ("5.releases-0-1f.json", "{}"),
            ("2.root.json", "{}"),
            ("../outside", "no"),
        ]);
        mirror.keep(&state).await.expect("kept");
        let again = Mirror::new(&dir);
        let question = again.question().await.expect("a question");
        assert_eq!((question.root, question.timestamp, question.snapshot), (2, 7, 3));
        assert_eq!(question.roles, [("channels".to_owned(), 2), ("releases-0-1f".to_owned(), 5)]);
        assert_eq!(question.targets, targets);
        assert!(!dir.with_file_name("outside").exists());
        // A device that knows of a newer state gets no answer, and a newer state is stored only as
        // a whole.
        let newer = Query { timestamp: 8, ..Query::default() }.encode();
        assert!(again.answer(&newer).await.expect("no error").is_none());
        let of_device = answer(&[("timestamp.json", &timestamp(8)), ("4.snapshot.json", "{}")]);
        again.keep_of_device(&newer, &of_device).await.expect("kept");
        assert_eq!(again.timestamp().await.expect("read"), Some(7));
        again.news.notified().await;
        again.keep(&answer(&[("targets/releases/os/00.1", "x")])).await.expect("kept");
        again.prune().await.expect("pruned");
        let mut left = again.store.list().await.expect("listed");
        left.sort();
        let expected =
            ["2.channels.json", "2.root.json", "4.snapshot.json", "5.releases-0-1f.json", "timestamp.json"];
        assert_eq!(left, expected);
    }
}
