//! U-Boot, by two variables of its environment: `distd_slot` is the slot that starts by default,
//! and `distd_once` the one that starts once. The boot script clears `distd_once` and saves the
//! environment before it starts that slot (docs/slots.md has the script).
//!
//! `fw_setenv` writes both in one call: with two copies of the environment a power cut leaves the
//! old or the new values.

use std::path::{Path, PathBuf};

use anyhow::anyhow;
use async_trait::async_trait;
use distd_core::names::Name;

use super::super::programs;
use super::{About, Loader, Slot, Spare, unusable};

const DEFAULT: &str = "distd_slot";
const ONCE: &str = "distd_once";

/// The environment, by its configuration file.
pub(super) struct UBoot {
    config: PathBuf,
}

impl UBoot {
    /// Opens the environment that the file `config` describes.
    ///
    /// # Errors
    /// Failures with [`Code::Local`](crate::failure::Code::Local) when it cannot be read, or names
    /// none of the slots. The tools take an environment whose checksum is wrong for empty and fill
    /// it with their own defaults; written back, it would replace the board's.
    pub(super) async fn open(config: &Path, slots: &[Slot; 2]) -> anyhow::Result<Self> {
        let uboot = Self { config: config.to_owned() };
        let [default, _] = uboot.variables().await?;
        if !slots.iter().any(|slot| slot.name.as_str() == default) {
            let error = match default.is_empty() {
                true => anyhow!("U-Boot's environment has no variable {DEFAULT}"),
                false => anyhow!("U-Boot's variable {DEFAULT} is {default}, which is no slot"),
            };
            let next = format!(
                "make sure that fw_printenv -c FILE shows the environment of this board without a warning, \
                 then name the slot that runs: fw_setenv -c FILE {DEFAULT} {}",
                slots[0].name
            );
            return Err(unusable(error, &next));
        }
        let text = std::fs::read_to_string(config).unwrap_or_default();
        let copies = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        if copies.count() < 2 {
            tracing::warn!(
                config = %config.display(),
                "U-Boot's environment has one copy: a power cut while it is written can lose it"
            );
        }
        Ok(uboot)
    }

    async fn call(&self, program: &str, args: &[&str], input: &str) -> anyhow::Result<String> {
        let config = self.config.to_string_lossy().into_owned();
        let args = ["-c", &config].into_iter().chain(args.iter().copied());
        programs::run(Path::new(program), args, input).await.map_err(|error| {
            unusable(error, "install libubootenv-tool, and check its configuration: fw_printenv -c FILE")
        })
    }

    /// Returns the values of `distd_slot` and `distd_once`; empty without one.
    async fn variables(&self) -> anyhow::Result<[String; 2]> {
        let text = self.call("fw_printenv", &[], "").await?;
        let value = |name: &str| {
            let mut values = text.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix('='));
            values.next_back().unwrap_or_default().to_owned()
        };
        Ok([value(DEFAULT), value(ONCE)])
    }

    async fn set(&self, slot: &str, once: &str) -> anyhow::Result<()> {
        if self.variables().await? == [slot, once] {
            return Ok(());
        }
        self.call("fw_setenv", &["-s", "-"], &format!("{DEFAULT}={slot}\n{ONCE}={once}\n")).await?;
        // Versions of fw_setenv differ in the lines that they read, and skip others without a word.
        if self.variables().await? == [slot, once] {
            return Ok(());
        }
        let error = anyhow!("fw_setenv did not set {DEFAULT} and {ONCE}");
        Err(unusable(error, "set them by hand to see why: fw_setenv -c FILE distd_slot NAME"))
    }
}

#[async_trait]
impl Loader for UBoot {
    async fn default_slot(&self) -> anyhow::Result<Option<Name>> {
        Ok(self.variables().await?[0].parse().ok())
    }

    async fn try_once(&self, slot: &Name, _: &About) -> anyhow::Result<()> {
        let [default, _] = self.variables().await?;
        self.set(&default, slot.as_str()).await
    }

    async fn keep(&self, slot: &Name, _: &Name, _: Spare) -> anyhow::Result<()> {
        self.set(slot.as_str(), "").await
    }
}
