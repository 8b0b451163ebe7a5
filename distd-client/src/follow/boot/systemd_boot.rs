//! systemd-boot, by entries of type 1 of the Boot Loader Specification, with counted tries.
//!
//! Slot `a` has the entry `loader/entries/distd-a.conf` and the directory `distd/a` with its kernel
//! on the EFI system partition. An entry that is to be tried once has `+1` in its name
//! (`distd-b+1.conf`) and a higher version, so that it is the first of the menu; systemd-boot turns
//! it into `distd-b+0-1.conf` before it starts it, and an entry without tries left is the last. A
//! release that works gets its name without a count, as `systemd-bless-boot good` gives it.
//!
//! The partition is FAT, which has no journal: each file is written under a name that systemd-boot
//! does not read, synced, renamed, and synced again, since the new name has no bytes before that.
//! The entry of the slot that runs is not written.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use async_trait::async_trait;
use distd_core::names::Name;
use distd_peer::filesystem;

use super::super::programs;
use super::{About, Loader, Slot, Spare, unusable};
use crate::disk::side;
use crate::failure::{Code, Failure};

/// Directory of entries on the partition.
const ENTRIES: &str = "loader/entries";

/// Directory of kernels on the partition, and `sort-key` of all entries of slots.
const OURS: &str = "distd";

/// Largest entry that is read, bytes.
const ENTRY_BYTES_MAX: u64 = 64 << 10;

/// Time within which a file is copied out of a slot.
const COPY_LIMIT: Duration = Duration::from_secs(300);

/// Shell script that mounts a slot where nothing else sees it, and prints a file of it. The mount
/// ends with the shell, also when it is killed. A link to an absolute path would lead to a file of
/// the system that runs.
const PRINT_FILE: &str = "mount -o ro -- \"$1\" \"$2\" && at=$(readlink -f -- \"$2\") && \
    file=$(readlink -e -- \"$at/$3\") || { echo \"$3 is not in the release\" >&2; exit 1; }; \
    case $file in \"$at\"/*) exec cat -- \"$file\";; esac; echo \"$3 leads out of the release\" >&2; exit 1";

/// Directory of the variables that the firmware and systemd-boot set.
const EFI_VARIABLES: &str = "/sys/firmware/efi/efivars";

/// Variable with the id of the entry that was started (systemd, "Boot Loader Interface").
const ENTRY_SELECTED: &str = "LoaderEntrySelected-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f";

/// Largest value of that variable that is read, bytes.
const VARIABLE_BYTES_MAX: u64 = 4 << 10;

/// Bytes in front of the value of a variable: its attributes.
const ATTRIBUTES: usize = 4;

/// How a release is started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in super::super) enum Start {
    /// By a kernel that is copied out of the release.
    Kernel(Kernel),
    /// By a unified kernel image that the release has as a partition.
    Unified {
        /// Path of its place on the EFI system partition; `{slot}` stands for the slot's name.
        path: String,
        /// Options for an image that has none of its own; likewise. Empty for one that has.
        options: String,
    },
}

/// Files of a release that start it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in super::super) struct Kernel {
    /// Path of the kernel in the release.
    pub(in super::super) kernel: PathBuf,
    /// Path of the initial RAM disk.
    pub(in super::super) initrd: Option<PathBuf>,
    /// Options; `{slot}` stands for the slot's name.
    pub(in super::super) options: String,
}

/// The EFI system partition.
pub(super) struct SystemdBoot {
    esp: PathBuf,
    start: Start,
    slots: [Slot; 2],
    /// Directory in which a slot is mounted for a moment.
    scratch: PathBuf,
}

/// Entry of a slot that is on the partition.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Found {
    path: PathBuf,
    /// Tries left, in an entry whose tries are counted.
    left: Option<u32>,
    /// Number in the line `version`; 0 without one.
    version: u64,
}

/// Number of tries left in the name of a slot's entry; `None` for the name of another file. The
/// inner value is `None` when tries are not counted.
fn tries_left(file_name: &str, slot: &Name) -> Option<Option<u32>> {
    let rest = file_name.strip_suffix(".conf")?.strip_prefix(OURS)?.strip_prefix('-')?;
    let counts = rest.strip_prefix(slot.as_str())?;
    if counts.is_empty() {
        return Some(None);
    }
    let counts = counts.strip_prefix('+')?;
    let (left, done) = counts.split_once('-').unwrap_or((counts, "0"));
    done.parse::<u32>().ok()?;
    Some(Some(left.parse().ok()?))
}

/// Value of a key in the text of an entry.
fn value_of<'a>(entry: &'a str, key: &str) -> Option<&'a str> {
    let rest = entry.lines().filter_map(|line| line.trim_start().strip_prefix(key));
    rest.filter(|rest| rest.starts_with(char::is_whitespace)).map(str::trim).next()
}

/// Names and paths of the files in a directory; names that are no text are left out.
fn list(dir: &Path) -> anyhow::Result<Vec<(String, PathBuf)>> {
    let failed = || format!("could not list {}", dir.display());
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).with_context(failed)? {
        let entry = entry.with_context(failed)?;
        if let Some(name) = entry.file_name().to_str() {
            found.push((name.to_owned(), entry.path()));
        }
    }
    Ok(found)
}

fn read(path: &Path) -> anyhow::Result<String> {
    let bytes = side::read_anyones(path, ENTRY_BYTES_MAX);
    let bytes = bytes.with_context(|| format!("could not read {}", path.display()))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

impl SystemdBoot {
    /// Opens the partition that is mounted at `esp`.
    ///
    /// # Errors
    /// Failures with [`Code::Local`] when it has no directory of entries, or no entry of a slot.
    pub(super) fn open(
        esp: &Path,
        start: Start,
        slots: &[Slot; 2],
        scratch: PathBuf,
    ) -> anyhow::Result<Self> {
        let loader = Self { esp: esp.to_owned(), start, slots: slots.clone(), scratch };
        let entries = loader.esp.join(ENTRIES);
        if !entries.is_dir() {
            let error = anyhow!("{} is no directory", entries.display());
            let next = "mount the EFI system partition, and name its mount point: --boot-path /boot/efi";
            return Err(unusable(error, next));
        }
        if loader.entries_of(&slots[0].name)?.is_empty() && loader.entries_of(&slots[1].name)?.is_empty() {
            let error = anyhow!("{} has no entry of a slot", entries.display());
            let next =
                format!("name the entry of the slot that runs {OURS}-{}.conf (slots.md)", slots[0].name);
            return Err(unusable(error, &next));
        }
        loader.check_others()?;
        if let Start::Unified { path, .. } = &loader.start {
            // The directory of each slot is made when its image is written.
            let above = Path::new(path).parent().and_then(Path::parent).unwrap_or(Path::new(""));
            let above = loader.esp.join(above);
            let made = fs::create_dir_all(&above).and_then(|()| filesystem::sync_parent(&above));
            made.with_context(|| format!("could not make {}", above.display()))
                .map_err(|error| Failure::new(Code::Local, error))?;
        }
        Ok(loader)
    }

    /// Checks that no other entry of the menu starts before those of the slots.
    fn check_others(&self) -> anyhow::Result<()> {
        let is_ours = |name: &str| self.slots.iter().any(|slot| tries_left(name, &slot.name).is_some());
        for (name, path) in list(&self.esp.join(ENTRIES))? {
            if is_ours(&name) || !name.ends_with(".conf") {
                continue;
            }
            let text = read(&path)?;
            if value_of(&text, "sort-key").is_some_and(|key| key < OURS) {
                let error = anyhow!("{} starts before the slots", path.display());
                let next = format!("give it a sort-key after {OURS}, or none, or remove it");
                return Err(unusable(error, &next));
            }
        }
        let unified = self.esp.join("EFI/Linux");
        let images = list(&unified).unwrap_or_default();
        if images.iter().any(|(name, _)| name.ends_with(".efi")) {
            tracing::warn!(
                directory = %unified.display(),
                "there are kernel images here that systemd-boot may start before the slots"
            );
        }
        Ok(())
    }

    fn entries_of(&self, slot: &Name) -> anyhow::Result<Vec<Found>> {
        let mut found = Vec::new();
        for (name, path) in list(&self.esp.join(ENTRIES))? {
            let Some(left) = tries_left(&name, slot) else { continue };
            let text = read(&path)?;
            let version = value_of(&text, "version").unwrap_or("0").parse().map_err(|_| {
                let error = anyhow!("the version in {} is no number", path.display());
                unusable(error, "write a number, which grows with each release: version 1")
            })?;
            found.push(Found { left, version, path });
        }
        Ok(found)
    }

    fn device(&self, slot: &Name) -> anyhow::Result<&Path> {
        let found = self.slots.iter().find(|known| known.name == *slot).map(|known| known.device.as_path());
        found.ok_or_else(|| anyhow!("{slot} is no slot"))
    }

    fn remove_entries(&self, slot: &Name) -> anyhow::Result<()> {
        for entry in self.entries_of(slot)? {
            side::remove_durably(&entry.path).map_err(Failure::from)?;
        }
        Ok(())
    }

    /// Copies a file of the release in a slot to the partition. A file that is the same stays.
    async fn copy_out(&self, slot: &Name, file: &Path, to: &Path) -> anyhow::Result<()> {
        fs::create_dir_all(&self.scratch)
            .with_context(|| format!("could not make {}", self.scratch.display()))?;
        let (part, device) = (side::with_suffix(to, ".part"), self.device(slot)?);
        let out = side::open_empty(&part).map_err(Failure::from)?;
        let mut command = programs::command(Path::new("unshare"));
        command.args(["--mount", "--propagation", "private", "sh", "-c", PRINT_FILE, "sh"]);
        command.args([device, &self.scratch, file]);
        command
            .stdin(Stdio::null())
            .stdout(out.try_clone().context("could not share a file")?)
            .stderr(Stdio::piped());
        // `output` of tokio, unlike that of the standard library, would put a pipe in place of the
        // file.
        let run = async { command.spawn()?.wait_with_output().await };
        let run = tokio::time::timeout(COPY_LIMIT, run).await;
        let run = run.map_err(|_| anyhow!("it took longer than {} s", COPY_LIMIT.as_secs()));
        let run = run.and_then(|output| Ok(output?)).and_then(|output| match output.status.success() {
            true => Ok(()),
            false => Err(anyhow!(String::from_utf8_lossy(&output.stderr).trim().replace('\n', " "))),
        });
        let copied = run.and_then(|()| reread(&part, &out)).and_then(|()| Ok(filesystem::rename(&part, to)?));
        if copied.is_err() {
            let _ = fs::remove_file(&part);
        }
        copied
            .with_context(|| format!("could not copy {} of slot {slot} to {}", file.display(), to.display()))
    }

    fn entry_text(&self, slot: &Name, release: &About, version: u64) -> String {
        let mut text = format!(
            "title {} {} (slot {slot})\nsort-key {OURS}\nversion {version}\n",
            release.product, release.version
        );
        let of_slot = |setting: &str| setting.replace(super::SLOT_NAME, slot.as_str());
        let options = match &self.start {
            Start::Kernel(kernel) => {
                text.push_str(&format!("linux /{OURS}/{slot}/linux\n"));
                if kernel.initrd.is_some() {
                    text.push_str(&format!("initrd /{OURS}/{slot}/initrd\n"));
                }
                Some(&kernel.options)
            }
            Start::Unified { path, options } => {
                text.push_str(&format!("efi /{}\n", of_slot(path)));
                // Options of an entry replace those in the image, and with them the hash of the
                // root.
                Some(options).filter(|options| !options.is_empty())
            }
        };
        if let Some(options) = options {
            text.push_str(&format!("options {} {}{slot}\n", of_slot(options), super::SLOT_OPTION));
        }
        text
    }

    /// Copies the kernel of a slot to the partition, or checks that its unified kernel image is
    /// there.
    async fn prepare(&self, slot: &Name) -> anyhow::Result<()> {
        match &self.start {
            Start::Kernel(kernel) => {
                let directory = self.esp.join(OURS).join(slot.as_str());
                fs::create_dir_all(&directory)
                    .with_context(|| format!("could not make {}", directory.display()))
                    .map_err(|error| Failure::new(Code::Local, error))?;
                self.copy_out(slot, &kernel.kernel, &directory.join("linux")).await?;
                if let Some(initrd) = &kernel.initrd {
                    self.copy_out(slot, initrd, &directory.join("initrd")).await?;
                }
                for name in [&directory, &self.esp.join(OURS)] {
                    filesystem::sync_parent(name).context("could not sync the EFI system partition")?;
                }
            }
            Start::Unified { path, .. } => {
                let image = self.esp.join(path.replace(super::SLOT_NAME, slot.as_str()));
                let read = File::open(&image).map_err(anyhow::Error::from);
                read.and_then(|file| reread(&image, &file))
                    .with_context(|| format!("could not read {}", image.display()))
                    .map_err(|error| Failure::new(Code::Local, error))?;
                for name in image.ancestors().take_while(|name| *name != self.esp) {
                    filesystem::sync_parent(name).context("could not sync the EFI system partition")?;
                }
            }
        }
        Ok(())
    }
}

/// Returns the slot whose entry systemd-boot has started, from the value of its variable:
/// attributes and a text of UTF-16.
fn selected(variable: &[u8], slots: &[Slot; 2]) -> Option<Name> {
    let units = variable.get(ATTRIBUTES..)?.chunks_exact(2).map(|two| u16::from_le_bytes([two[0], two[1]]));
    let units: Vec<u16> = units.take_while(|unit| *unit != 0).collect();
    let entry = String::from_utf16(&units).ok()?;
    // systemd-boot leaves the suffix out in some versions.
    let entry = if entry.ends_with(".conf") { entry } else { format!("{entry}.conf") };
    slots.iter().map(|slot| &slot.name).find(|slot| tries_left(&entry, slot).is_some()).cloned()
}

/// Makes a file durable, and checks that the medium holds what was written: systemd-boot ends at a
/// kernel that cannot be loaded, and looks at no other entry.
fn reread(path: &Path, file: &File) -> anyhow::Result<()> {
    let hash = || {
        let mut hasher = blake3::Hasher::new();
        hasher.update_reader(File::open(path)?)?;
        io::Result::Ok((hasher.count(), hasher.finalize()))
    };
    file.sync_all()?;
    let written = hash()?;
    // This is advice. Where it is not taken, the cache is read again.
    let _ = rustix::fs::fadvise(file, 0, None, rustix::fs::Advice::DontNeed);
    match (written.0 > 0, hash()? == written) {
        (true, true) => Ok(()),
        (false, _) => Err(anyhow!("the file is empty")),
        (true, false) => Err(anyhow!("the medium does not hold what was written to it")),
    }
}

#[async_trait]
impl Loader for SystemdBoot {
    async fn booted(&self) -> anyhow::Result<Option<Name>> {
        // Where the entry has options, the kernel was told its slot, also by kexec.
        if !matches!(&self.start, Start::Unified { options, .. } if options.is_empty()) {
            return Ok(None);
        }
        let variable = side::read_anyones(&Path::new(EFI_VARIABLES).join(ENTRY_SELECTED), VARIABLE_BYTES_MAX);
        Ok(variable.ok().and_then(|variable| selected(&variable, &self.slots)))
    }

    async fn default_slot(&self) -> anyhow::Result<Option<Name>> {
        let mut best: Option<(u64, Name)> = None;
        for slot in &self.slots {
            for entry in self.entries_of(&slot.name)?.iter().filter(|entry| entry.left.is_none()) {
                if best.as_ref().is_none_or(|(version, _)| *version < entry.version) {
                    best = Some((entry.version, slot.name.clone()));
                }
            }
        }
        Ok(best.map(|(_, slot)| slot))
    }

    async fn try_once(&self, slot: &Name, release: &About) -> anyhow::Result<()> {
        self.remove_entries(slot)?;
        self.prepare(slot).await?;
        let mut version = 0;
        for known in &self.slots {
            let versions = self.entries_of(&known.name)?.into_iter().map(|entry| entry.version);
            version = versions.max().unwrap_or(0).max(version);
        }
        let text = self.entry_text(slot, release, version.saturating_add(1));
        let entry = self.esp.join(ENTRIES).join(format!("{OURS}-{slot}+1.conf"));
        Ok(side::write_atomic(&entry, text.as_bytes()).map_err(Failure::from)?)
    }

    async fn keep(&self, slot: &Name, other: &Name, spare: Spare) -> anyhow::Result<()> {
        let entries = self.entries_of(slot)?;
        let plain = self.esp.join(ENTRIES).join(format!("{OURS}-{slot}.conf"));
        if let Some(counted) = entries.iter().filter(|entry| entry.left.is_some()).max_by_key(|e| e.version) {
            // A crash may have left several entries of the slot; the newest one counts.
            let renamed = filesystem::rename(&counted.path, &plain);
            renamed.with_context(|| format!("could not rename {}", counted.path.display()))?;
        } else if entries.is_empty() {
            let error = anyhow!("{} is missing, so slot {slot} cannot be made the default", plain.display());
            return Err(unusable(error, "write the entry of the slot that runs (slots.md)"));
        }
        for entry in self.entries_of(slot)?.iter().filter(|entry| entry.path != plain) {
            side::remove_durably(&entry.path).map_err(Failure::from)?;
        }
        // An entry with a higher version, or with tries left, would start before this slot.
        let ours = self.entries_of(slot)?.first().map_or(0, |entry| entry.version);
        for entry in self.entries_of(other)? {
            if spare == Spare::Unusable || entry.left.is_some() || entry.version >= ours {
                side::remove_durably(&entry.path).map_err(Failure::from)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> Name {
        text.parse().expect("a name")
    }

    fn loader(dir: &Path, entries: &[(&str, &str)]) -> anyhow::Result<SystemdBoot> {
        fs::create_dir_all(dir.join(ENTRIES)).expect("a directory");
        for (file, text) in entries {
            fs::write(dir.join(ENTRIES).join(file), text).expect("write");
        }
        let slot = |name: &str| Slot { name: name.parse().expect("a name"), device: "/dev/null".into() };
        let kernel = Kernel {
            kernel: "vmlinuz".into(),
            initrd: None,
            options: "root=PARTLABEL=root-{slot} ro".into(),
        };
        SystemdBoot::open(dir, Start::Kernel(kernel), &[slot("a"), slot("b")], dir.join("mount"))
    }

    #[tokio::test]
    async fn a_unified_image_is_started_where_it_lies_and_with_its_own_options() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let mut boot = loader(dir.path(), &[("distd-a.conf", "version 3\n")]).expect("opens");
        let path = "distd/{slot}/uki.efi".to_owned();
        boot.start = Start::Unified { path: path.clone(), options: String::new() };
        let about = About { product: name("os"), version: name("2") };
        let missing = boot.try_once(&name("b"), &about).await.expect_err("no image");
        assert!(format!("{missing:#}").contains("distd/b/uki.efi"), "{missing:#}");
        assert_eq!(list(dir.path()), ["distd-a.conf"], "nothing is ordered without it");
        fs::create_dir_all(dir.path().join("distd/b")).expect("a directory");
        fs::write(dir.path().join("distd/b/uki.efi"), b"MZ").expect("write");
        boot.try_once(&name("b"), &about).await.expect("ordered");
        let entry = fs::read_to_string(dir.path().join(ENTRIES).join("distd-b+1.conf")).expect("an entry");
        assert_eq!(entry, "title os 2 (slot b)\nsort-key distd\nversion 4\nefi /distd/b/uki.efi\n",);
        // An image without options of its own gets them.
        boot.start = Start::Unified { path, options: "root=PARTLABEL=root-{slot}".to_owned() };
        boot.try_once(&name("b"), &about).await.expect("ordered");
        let entry = fs::read_to_string(dir.path().join(ENTRIES).join("distd-b+1.conf")).expect("an entry");
        assert!(entry.ends_with("\noptions root=PARTLABEL=root-b distd.slot=b\n"), "{entry}");
    }

    #[test]
    fn the_entry_that_was_started_names_the_slot() {
        let slot = |name: &str| Slot { name: name.parse().expect("a name"), device: "/dev/null".into() };
        let slots = [slot("a"), slot("b")];
        let variable = |text: &str| {
            let units = text.encode_utf16().chain([0]).flat_map(u16::to_le_bytes);
            [6, 0, 0, 0].into_iter().chain(units).collect::<Vec<u8>>()
        };
        for (text, slot) in [
            ("distd-b+0-1.conf", Some("b")),
            ("distd-a.conf", Some("a")),
            ("distd-b", Some("b")),
            ("debian.conf", None),
            ("", None),
        ] {
            assert_eq!(selected(&variable(text), &slots), slot.map(name), "{text}");
        }
        assert_eq!(selected(b"\x06", &slots), None);
    }

    fn list(dir: &Path) -> Vec<String> {
        let entries = fs::read_dir(dir.join(ENTRIES)).expect("list").flatten();
        let mut names: Vec<String> = entries.map(|e| e.file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    #[test]
    fn the_name_of_an_entry_has_its_slot_and_its_tries() {
        let b = name("b");
        assert_eq!(tries_left("distd-b.conf", &b), Some(None));
        assert_eq!(tries_left("distd-b+1.conf", &b), Some(Some(1)));
        assert_eq!(tries_left("distd-b+0-1.conf", &b), Some(Some(0)));
        for other in ["distd-bc.conf", "distd-a.conf", "distd-b+1.conf.part", "distd-b+x.conf", "b.conf"] {
            assert_eq!(tries_left(other, &b), None, "{other}");
        }
        // A slot may have any name, also one that looks like a count.
        assert_eq!(tries_left("distd-b+1.conf", &name("b+1")), Some(None));
    }

    #[tokio::test]
    async fn a_slot_that_is_kept_is_first_and_no_slot_that_may_be_half_written_starts() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let boot = loader(
            dir.path(),
            &[
                ("distd-a.conf", "version 3\n"),
                ("distd-b+0-1.conf", "version 4\n"),
                ("debian.conf", "title Debian\n"),
            ],
        );
        let boot = boot.expect("opens");
        let (a, b) = (name("a"), name("b"));
        assert_eq!(boot.default_slot().await.expect("reads"), Some(a.clone()));
        boot.keep(&b, &a, Spare::Whole).await.expect("kept");
        assert_eq!(list(dir.path()), ["debian.conf", "distd-a.conf", "distd-b.conf"]);
        assert_eq!(boot.default_slot().await.expect("reads"), Some(b.clone()));
        boot.keep(&b, &a, Spare::Unusable).await.expect("kept");
        assert_eq!(list(dir.path()), ["debian.conf", "distd-b.conf"]);
        assert!(boot.keep(&a, &b, Spare::Whole).await.is_err(), "there is no entry of a");
        assert_eq!(list(dir.path()), ["debian.conf", "distd-b.conf"]);
    }

    #[tokio::test]
    async fn going_back_removes_the_entry_that_would_start_before() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let boot = loader(dir.path(), &[("distd-a.conf", "version 3\n"), ("distd-b+1.conf", "version 4\n")]);
        boot.expect("opens").keep(&name("a"), &name("b"), Spare::Whole).await.expect("kept");
        assert_eq!(list(dir.path()), ["distd-a.conf"]);
    }

    #[test]
    fn a_partition_without_our_entries_is_refused() {
        let dir = tempfile::tempdir().expect("temporary directory");
        assert!(loader(dir.path(), &[("debian.conf", "")]).is_err());
    }

    #[test]
    fn a_copied_file_is_read_back_and_has_bytes() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("linux");
        let file = File::create(&path).expect("create");
        assert!(reread(&path, &file).expect_err("empty").to_string().contains("empty"));
        fs::write(&path, "kernel").expect("write");
        reread(&path, &file).expect("there");
    }

    #[test]
    fn the_entry_names_kernel_options_and_slot() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let boot = loader(dir.path(), &[("distd-a.conf", "")]).expect("opens");
        let release = About { product: name("os"), version: name("2") };
        let text = boot.entry_text(&name("b"), &release, 5);
        assert_eq!(
            text,
            "title os 2 (slot b)\nsort-key distd\nversion 5\nlinux /distd/b/linux\n\
             options root=PARTLABEL=root-b ro distd.slot=b\n"
        );
        assert_eq!(value_of(&text, "version"), Some("5"));
    }
}
