//! A boot loader that a program of the operator stands for.
//!
//! The program is called with `booted`, `default`, `once SLOT` or `keep SLOT`. It prints the name
//! of a slot for the first two, and nothing when it does not know.

use std::path::PathBuf;

use anyhow::Context as _;
use async_trait::async_trait;
use distd_core::names::Name;

use super::super::programs;
use super::{About, Loader, Spare, unusable};

/// The program.
pub(super) struct Command {
    program: PathBuf,
}

impl Command {
    pub(super) fn new(program: PathBuf) -> Self {
        Self { program }
    }

    async fn call(&self, args: &[&str]) -> anyhow::Result<String> {
        let called = programs::run(&self.program, args, "").await;
        called.map_err(|error| unusable(error, "call the program by hand with the same words"))
    }

    async fn slot(&self, question: &str) -> anyhow::Result<Option<Name>> {
        let answer = self.call(&[question]).await?;
        if answer.is_empty() {
            return Ok(None);
        }
        let wrong = || format!("{} {question} printed no name of a slot", self.program.display());
        Ok(Some(answer.parse().with_context(wrong)?))
    }
}

#[async_trait]
impl Loader for Command {
    async fn booted(&self) -> anyhow::Result<Option<Name>> {
        self.slot("booted").await
    }

    async fn default_slot(&self) -> anyhow::Result<Option<Name>> {
        self.slot("default").await
    }

    async fn try_once(&self, slot: &Name, _: &About) -> anyhow::Result<()> {
        self.call(&["once", slot.as_str()]).await.map(drop)
    }

    async fn keep(&self, slot: &Name, _: &Name, _: Spare) -> anyhow::Result<()> {
        self.call(&["keep", slot.as_str()]).await.map(drop)
    }
}
