//! Explanation of a delta between two artifacts on this machine, with two threads, as text or as a
//! picture.

pub(crate) mod html;
mod picture;
pub(crate) mod text;

use std::fs::File;
use std::io::{self, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

use distd_core::bounds::VIEW_BYTES_MAX;
use distd_core::cut::ReadAt;
use distd_core::explain::{ExplainError, Host, Options, Report};
use distd_core::patch::Cost;
use distd_core::patch::view::{ViewFile, ViewLimits, transparency};

use distd_client::cutting::Source;
use distd_client::progress::Progress;

/// Threads and progress bar for the explainer, which is in core and has neither.
struct Threads<'a>(&'a dyn Progress);

impl Host for Threads<'_> {
    fn join<A: Send, B: Send>(&self, a: impl FnOnce() -> A + Send, b: impl FnOnce() -> B + Send) -> (A, B) {
        std::thread::scope(|scope| {
            let beside = scope.spawn(b);
            let a = a();
            // A panic of that thread is a panic here.
            (a, beside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
        })
    }

    fn advance(&self, bytes: u64) {
        self.0.add(bytes);
    }

    fn phase(&self, phase: &'static str) {
        self.0.phase(phase);
    }
}

/// Longest view that is made to count bytes, in bytes, and most memory for it. The file of a view
/// is without a name in the directory for temporary files.
const VIEWS: ViewLimits = ViewLimits { bytes: VIEW_BYTES_MAX, memory: Cost::MEMORY_MAX };

/// Explains the delta between the artifacts at two paths: files, block devices or directories. With
/// `views`, also counts the bytes of the new artifact in which patches see content, which takes as
/// long as packing the artifact.
///
/// # Errors
/// Failures of [`Source`].
pub(crate) fn explain(
    old: &Path,
    new: &Path,
    views: bool,
    progress: &dyn Progress,
) -> anyhow::Result<Report> {
    let (old, new) = (Source::open(old)?, Source::open(new)?);
    progress.begin(old.len() + new.len(), "explain");
    let (old_regions, new_regions) = Threads(progress).join(|| old.regions(), || new.regions());
    let (old_regions, new_regions) = (old_regions?, new_regions?);
    let sides = ((&old, &old_regions), (&new, &new_regions));
    let report = distd_core::explain::explain(sides.0, sides.1, Options::default(), &Threads(progress));
    let mut report = report.map_err(|error| match error {
        ExplainError::Old(cause) => old.read_failure(cause),
        ExplainError::New(cause) => new.read_failure(cause),
    })?;
    if views {
        progress.phase("views");
        let file = || Ok(Box::new(View(tempfile::tempfile()?)) as Box<dyn ViewFile>);
        let counted = transparency(&new, &new_regions, VIEWS, &file);
        report.transparency = Some(counted.map_err(|cause| new.read_failure(cause))?);
    }
    old.check_unchanged()?;
    new.check_unchanged()?;
    Ok(report)
}

/// File of a view.
struct View(File);

impl Write for View {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

impl Seek for View {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.0.seek(to)
    }
}

impl ReadAt for View {
    fn len(&self) -> u64 {
        self.0.metadata().map_or(0, |data| data.len())
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.0.read_exact_at(buf, offset)
    }
}

#[cfg(test)]
mod tests {
    use distd_core::explain::{Count, Kind, KindCost, MetadataCost, PathCost};

    use super::*;
    use distd_client::progress::Ignored;

    /// Returns a report of changed files. The empty path stands for metadata.
    pub(super) fn report(paths: &[(&str, u64)]) -> Report {
        let paths: Vec<PathCost> = paths
            .iter()
            .map(|(path, bytes)| PathCost {
                path: (!path.is_empty()).then(|| path.as_bytes().to_vec()),
                kind: if path.is_empty() { Kind::Metadata } else { Kind::Changed },
                old_path: None,
                raw_bytes: *bytes,
                wire_bytes: *bytes,
            })
            .collect();
        let bytes = paths.iter().map(|cost| cost.wire_bytes).sum();
        let kind = KindCost { kind: Kind::Changed, paths: 1, raw_bytes: bytes, wire_bytes: bytes };
        Report {
            old_bytes: 0,
            new_bytes: bytes,
            level: 1,
            chunks: 1,
            raw_bytes: bytes,
            wire_bytes: bytes,
            kinds: vec![kind],
            paths,
            moved: Count::default(),
            metadata: MetadataCost::default(),
            times: None,
            uncompressed: None,
            transparency: None,
            hints: Vec::new(),
            all_names: true,
        }
    }

    #[test]
    fn directories_are_explained_by_path_and_two_threads_agree_with_one() {
        let noise = |seed: u8, len| {
            let mut bytes = vec![0; len];
            blake3::Hasher::new().update(&[seed]).finalize_xof().fill(&mut bytes);
            bytes
        };
        let dir = tempfile::tempdir().expect("temporary directory");
        let (old, new) = (dir.path().join("old"), dir.path().join("new"));
        for (root, seed) in [(&old, 1), (&new, 2)] {
            std::fs::create_dir_all(root.join("d")).expect("mkdir");
            std::fs::write(root.join("d/same"), noise(0, 300_000)).expect("write");
            std::fs::write(root.join("d/changed"), noise(seed, 200_000)).expect("write");
        }
        std::fs::write(new.join("new"), noise(3, 100_000)).expect("write");
        let report = explain(&old, &new, false, &Ignored).expect("explained");
        let found: Vec<_> =
            report.paths.iter().map(|cost| (cost.path.as_deref(), cost.kind, cost.raw_bytes)).collect();
        assert_eq!(
            found[..2],
            [(Some(&b"d/changed"[..]), Kind::Changed, 200_000), (Some(&b"new"[..]), Kind::New, 100_000),]
        );
        assert!(found[2..].iter().all(|(path, ..)| path.is_none()), "the listing: {found:?}");
        let open = |path| Source::open(path).expect("open");
        let (old, new) = (open(&old), open(&new));
        let (old_regions, new_regions) = (old.regions().expect("regions"), new.regions().expect("regions"));
        let alone = distd_core::explain::explain(
            (&old, &old_regions),
            (&new, &new_regions),
            Options::default(),
            &distd_core::explain::Alone,
        );
        assert_eq!(alone.expect("explained"), report);
    }

    #[test]
    fn transparency_counts_packed_files_without_a_view() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let mut noise = vec![0; 60_000];
        blake3::Hasher::new().finalize_xof().fill(&mut noise);
        let viewed = zstd::bulk::compress(&[&noise[..30_000], &[7; 90_000]].concat(), 3).expect("packs");
        std::fs::write(dir.path().join("plain"), &noise).expect("write");
        std::fs::write(dir.path().join("viewed"), &viewed).expect("write");
        std::fs::write(dir.path().join("opaque"), [b"BZh9", &noise[..20_000]].concat()).expect("write");
        let counted = |views| {
            let report = explain(dir.path(), dir.path(), views, &Ignored).expect("explained");
            (report.new_bytes, report.transparency)
        };
        let (bytes, Some(found)) = counted(true) else { panic!("it was asked for") };
        assert_eq!((found.bytes, found.viewed), (bytes, viewed.len() as u64));
        let [opaque] = &found.opaque[..] else { panic!("{:?}", found.opaque) };
        assert_eq!((&opaque.name[..], &opaque.reason[..]), (&b"opaque"[..], "bzip2 has no views"));
        assert_eq!((opaque.bytes, found.transparent()), (20_004, bytes - 20_004));
        assert_eq!(counted(false).1, None);
    }

    #[test]
    fn a_missing_path_is_a_local_failure() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let error =
            explain(&dir.path().join("none"), dir.path(), false, &Ignored).expect_err("nothing there");
        assert_eq!(distd_client::failure::code_of(&error), distd_client::failure::Code::Local);
    }
}
