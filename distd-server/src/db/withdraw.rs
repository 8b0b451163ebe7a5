//! Releases that are withdrawn, and releases and patch sets whose bytes go. docs/store.md,
//! "Withdrawing" and "Removing", has the order and what each crash leaves.

use std::collections::BTreeSet;

use distd_core::names::Name;
use distd_core::{ChunkId, ManifestId};
use sqlx::{Any, Transaction};

use super::audit::append;
use super::bulk::{LIST_MAX, padded, padded_len};
use super::ids::IdTx;
use super::releases::{self, ReleaseRow};
use super::rollouts::{UNDER_WAY, versions_required};
use super::row::{Columns, signed};
use super::{Db, DbError, PatchSetKey, UnixSeconds, failed};

const WHAT: &str = "withdraw the release";
const REMOVE: &str = "remove releases";

/// Result of marking a release.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Withdraw {
    /// The release is marked and no longer counts as one.
    Marked(ReleaseRow),
    /// There is no such release.
    Unknown,
    /// These channels point to the release, or a rollout brings it to their devices.
    InUse(Vec<Name>),
    /// The release is pinned, for this reason.
    Pinned(String),
    /// Nodes run the release or are pinned to it: their number.
    Running(u64),
}

/// The one who removes a release: only what a policy gave up comes back when a node runs it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Remover {
    Operator,
    Policy,
}

/// Conditions of a removal, besides channels and rollouts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unless {
    /// No other condition: an order of an operator.
    Used,
    /// Not while nodes run the release or are pinned to it.
    Running,
}

/// Releases and patch sets that go in one transaction.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Leaving {
    /// The releases.
    pub releases: Vec<ReleaseRow>,
    /// The patch sets, besides those from or to the releases.
    pub sets: Vec<PatchSetKey>,
}

impl Leaving {
    /// Whether nothing goes.
    pub fn is_empty(&self) -> bool {
        self.releases.is_empty() && self.sets.is_empty()
    }
}

/// Manifests that something names after a removal, and those that nothing does.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Division {
    /// Manifests that nothing names any more.
    pub unneeded: BTreeSet<ManifestId>,
    /// Manifests of releases that stay, and of patch sets between those.
    pub needed: BTreeSet<ManifestId>,
}

/// The last step of a removal under way; no commit runs meanwhile. Dropped, it leaves everything as
/// it was.
#[derive(Debug)]
pub struct RemovalTx {
    ids: IdTx,
    leaving: Leaving,
    /// Rows of the last division, which are those that go.
    rows: Option<Rows>,
}

/// Channels that need a release: they point to it, a rollout brings it, or one requires it.
async fn channels_of(
    tx: &mut Transaction<'static, Any>,
    product: &Name,
    version: &Name,
) -> Result<Vec<Name>, DbError> {
    let sql = format!(
        "SELECT channel FROM channels WHERE product = $1 AND version = $2 UNION SELECT channel FROM rollouts \
         WHERE product = $3 AND version = $4 AND {UNDER_WAY} ORDER BY channel"
    );
    let rows = sqlx::query(sqlx::AssertSqlSafe(sql))
        .bind(product.to_string())
        .bind(version.to_string())
        .bind(product.to_string())
        .bind(version.to_string())
        .fetch_all(&mut **tx)
        .await
        .map_err(failed(WHAT))?;
    let channels: Result<Vec<Name>, _> = rows.iter().map(|row| row.parsed("channel")).collect();
    let channels = channels.map_err(failed(WHAT))?;
    if !channels.is_empty() {
        return Ok(channels);
    }
    let required = versions_required(&mut **tx).await.map_err(failed(WHAT))?;
    let required =
        required.into_iter().filter(|(of, _, versions)| of == product && versions.contains(version));
    Ok(required.map(|(_, channel, _)| channel).collect())
}

/// Makes transactions that mark or pin a release take turns, on PostgreSQL too.
pub(super) async fn lock_release(
    tx: &mut Transaction<'static, Any>,
    product: &Name,
    version: &Name,
) -> Result<(), sqlx::Error> {
    let sql = "UPDATE releases SET withdrawn = withdrawn WHERE product = $1 AND version = $2";
    sqlx::query(sql).bind(product.to_string()).bind(version.to_string()).execute(&mut **tx).await.map(drop)
}

/// Row of a release in any state; `true` when it is withdrawn, and the time since which it is being
/// removed.
async fn any_state(
    tx: &mut Transaction<'static, Any>,
    product: &Name,
    version: &Name,
) -> Result<Option<(ReleaseRow, bool, Option<UnixSeconds>)>, sqlx::Error> {
    let sql = format!(
        "SELECT {}, withdrawn, removing FROM releases WHERE product = $1 AND version = $2",
        releases::COLUMNS
    );
    let row = sqlx::query(sqlx::AssertSqlSafe(sql))
        .bind(product.to_string())
        .bind(version.to_string())
        .fetch_optional(&mut **tx)
        .await?;
    let Some(row) = row else { return Ok(None) };
    Ok(Some((releases::read(&row)?, row.time_or_none("withdrawn")?.is_some(), row.time_or_none("removing")?)))
}

impl Db {
    /// Marks a release as withdrawn, unless a channel points to it or a rollout leads to it. From
    /// then on no query finds it as a release; its bytes stay. A release that is withdrawn already
    /// is left as it is.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn mark_withdrawn(
        &self,
        product: &Name,
        version: &Name,
        now: UnixSeconds,
    ) -> Result<Withdraw, DbError> {
        let mut tx = self.begin_write().await?;
        let channels = channels_of(&mut tx, product, version).await?;
        if !channels.is_empty() {
            return Ok(Withdraw::InUse(channels));
        }
        let release = match any_state(&mut tx, product, version).await.map_err(failed(WHAT))? {
            None | Some((_, _, Some(_))) => return Ok(Withdraw::Unknown),
            Some((release, true, None)) => return Ok(Withdraw::Marked(release)),
            Some((release, false, None)) => release,
        };
        sqlx::query("UPDATE releases SET withdrawn = $1 WHERE product = $2 AND version = $3")
            .bind(now)
            .bind(product.to_string())
            .bind(version.to_string())
            .execute(&mut *tx)
            .await
            .map_err(failed(WHAT))?;
        let (subject, details) = (releases::subject(&release), releases::details(&release));
        append(&mut tx, &self.acting.at(now), "release.withdraw", &subject, &details)
            .await
            .map_err(failed(WHAT))?;
        tx.commit().await.map_err(failed(WHAT))?;
        Ok(Withdraw::Marked(release))
    }

    /// Makes a withdrawn release one again, also one whose removal has begun and whose bytes are
    /// still there. `None` when there is no such withdrawn release.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn bring_back(
        &self,
        product: &Name,
        version: &Name,
        now: UnixSeconds,
    ) -> Result<Option<ReleaseRow>, DbError> {
        let what = "bring the release back";
        // The lock of removals: a removal has read which releases go, and takes their chunks.
        let mut ids = IdTx::begin(self).await?;
        let found = any_state(&mut ids.tx, product, version).await.map_err(failed(what))?;
        let Some((release, true, _)) = found else { return Ok(None) };
        sqlx::query(
            "UPDATE releases SET withdrawn = NULL, removing = NULL, by_policy = 0 \
             WHERE product = $1 AND version = $2",
        )
        .bind(product.to_string())
        .bind(version.to_string())
        .execute(&mut *ids.tx)
        .await
        .map_err(failed(what))?;
        let (subject, details) = (releases::subject(&release), releases::details(&release));
        append(&mut ids.tx, &self.acting.at(now), "release.unwithdraw", &subject, &details)
            .await
            .map_err(failed(what))?;
        ids.tx.commit().await.map_err(failed(what))?;
        Ok(Some(release))
    }

    /// Marks a release, also a withdrawn one, as one whose bytes go, unless something needs it.
    /// A release whose removal has begun is left as it is.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn mark_removing(
        &self,
        product: &Name,
        version: &Name,
        unless: Unless,
        now: UnixSeconds,
    ) -> Result<Withdraw, DbError> {
        let mut tx = self.begin_write().await?;
        let marked = self.mark_one(&mut tx, product, version, unless, Remover::Operator, now).await?;
        if matches!(marked, Withdraw::Marked(_)) {
            tx.commit().await.map_err(failed(REMOVE))?;
        }
        Ok(marked)
    }

    /// Marks releases that a policy gives up, all in one transaction. Those that something came to
    /// need since they were chosen are left out. Returns the releases marked.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn mark_all_removing(
        &self,
        chosen: &[(Name, Name)],
        now: UnixSeconds,
    ) -> Result<Vec<ReleaseRow>, DbError> {
        let mut tx = self.begin_write().await?;
        let mut marked = Vec::new();
        for (product, version) in chosen {
            let unless = Unless::Running;
            if let Withdraw::Marked(release) =
                self.mark_one(&mut tx, product, version, unless, Remover::Policy, now).await?
            {
                marked.push(release);
            }
        }
        tx.commit().await.map_err(failed(REMOVE))?;
        Ok(marked)
    }

    async fn mark_one(
        &self,
        tx: &mut Transaction<'static, Any>,
        product: &Name,
        version: &Name,
        unless: Unless,
        remover: Remover,
        now: UnixSeconds,
    ) -> Result<Withdraw, DbError> {
        lock_release(tx, product, version).await.map_err(failed(REMOVE))?;
        let channels = channels_of(tx, product, version).await?;
        if !channels.is_empty() {
            return Ok(Withdraw::InUse(channels));
        }
        let release = match any_state(tx, product, version).await.map_err(failed(REMOVE))? {
            None => return Ok(Withdraw::Unknown),
            Some((release, _, Some(_))) => return Ok(Withdraw::Marked(release)),
            Some((release, _, None)) => release,
        };
        let pin = sqlx::query("SELECT why FROM release_pins WHERE product = $1 AND version = $2")
            .bind(product.to_string())
            .bind(version.to_string())
            .fetch_optional(&mut **tx)
            .await
            .map_err(failed(REMOVE))?;
        if let Some(pin) = pin {
            return Ok(Withdraw::Pinned(pin.text("why").map_err(failed(REMOVE))?));
        }
        if unless == Unless::Running {
            let nodes = super::usage::nodes_on(&mut **tx, product, version).await.map_err(failed(REMOVE))?;
            if nodes > 0 {
                return Ok(Withdraw::Running(nodes));
            }
        }
        sqlx::query(
            // An operator had withdrawn a release for a reason of theirs: no node brings it back.
            "UPDATE releases SET by_policy = CASE WHEN withdrawn IS NULL THEN $1 ELSE 0 END, \
             withdrawn = COALESCE(withdrawn, $2), removing = $2 WHERE product = $3 AND version = $4",
        )
        .bind(i64::from(remover == Remover::Policy))
        .bind(now)
        .bind(product.to_string())
        .bind(version.to_string())
        .execute(&mut **tx)
        .await
        .map_err(failed(REMOVE))?;
        let mut details = releases::details(&release);
        details["why"] = match remover {
            Remover::Operator => "order",
            Remover::Policy => "retention",
        }
        .into();
        append(tx, &self.acting.at(now), "release.remove", &releases::subject(&release), &details)
            .await
            .map_err(failed(REMOVE))?;
        Ok(Withdraw::Marked(release))
    }

    /// Releases that are withdrawn, and those whose bytes go and that still have rows.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn withdrawn(&self) -> Result<Vec<ReleaseRow>, DbError> {
        self.marked("withdrawn", "", i64::MAX).await
    }

    /// Releases whose removal began at `until` or before, and that still have rows.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn removing(&self, until: UnixSeconds) -> Result<Vec<ReleaseRow>, DbError> {
        self.marked("removing", "", until).await
    }

    /// Those of [`removing`](Self::removing) that a policy has given up and that nodes have come to
    /// run since, or are pinned to.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn removing_but_run(&self, until: UnixSeconds) -> Result<Vec<ReleaseRow>, DbError> {
        let mut run = Vec::new();
        for row in self.marked("removing", " AND by_policy = 1", until).await? {
            let nodes = super::usage::nodes_on(&self.pool, &row.product, &row.version).await;
            if nodes.map_err(failed(REMOVE))? > 0 {
                run.push(row);
            }
        }
        Ok(run)
    }

    /// Releases with a time in this column, at `until` or before, and with this condition.
    async fn marked(&self, column: &str, and: &str, until: UnixSeconds) -> Result<Vec<ReleaseRow>, DbError> {
        let sql = format!(
            "SELECT {} FROM releases WHERE {column} IS NOT NULL AND {column} <= $1{and} \
             ORDER BY {column}, product, version",
            releases::COLUMNS
        );
        let rows = sqlx::query(sqlx::AssertSqlSafe(sql)).bind(until).fetch_all(&self.pool).await;
        rows.and_then(|rows| rows.iter().map(releases::read).collect())
            .map_err(failed("list withdrawn releases"))
    }

    /// Time at which the oldest removal under way began, of a release or of a patch set.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn oldest_removal(&self) -> Result<Option<UnixSeconds>, DbError> {
        let what = "look for removals";
        let row = sqlx::query(
            "SELECT MIN(removing) AS oldest FROM (SELECT removing FROM releases WHERE removing IS NOT NULL \
             UNION ALL SELECT removing FROM patch_sets WHERE removing IS NOT NULL) AS every",
        )
        .fetch_one(&self.pool)
        .await
        .map_err(failed(what))?;
        row.time_or_none("oldest").map_err(failed(what))
    }

    /// Begins the last step of a removal of releases and patch sets that are marked.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn begin_removal(&self, leaving: Leaving) -> Result<RemovalTx, DbError> {
        Ok(RemovalTx { ids: IdTx::begin(self).await?, leaving, rows: None })
    }
}

/// Rows that go and rows that stay.
#[derive(Debug, Default)]
struct Rows {
    releases: Vec<(Name, Name)>,
    sets: Vec<PatchSetKey>,
    division: Division,
}

impl RemovalTx {
    /// Divides the manifests into those that something names after the removal and those that
    /// nothing does. A release that was brought back since it was marked stays.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn divide(&mut self) -> Result<Division, DbError> {
        let rows = self.rows().await?;
        Ok(self.rows.insert(rows).division.clone())
    }

    async fn rows(&mut self) -> Result<Rows, DbError> {
        let mut out = Rows::default();
        let chosen: BTreeSet<(&Name, &Name)> =
            self.leaving.releases.iter().map(|row| (&row.product, &row.version)).collect();
        let mut gone = BTreeSet::new();
        // Manifests of the releases of each product that stay.
        let mut kept: BTreeSet<(Name, ManifestId)> = BTreeSet::new();
        let rows = sqlx::query("SELECT product, version, manifest, removing FROM releases")
            .fetch_all(&mut *self.ids.tx)
            .await
            .map_err(failed(REMOVE))?;
        for row in &rows {
            let read = || -> Result<_, sqlx::Error> {
                let name: (Name, Name) = (row.parsed("product")?, row.parsed("version")?);
                Ok((name, ManifestId(row.hash("manifest")?), row.time_or_none("removing")?.is_some()))
            };
            let (name, manifest, removing) = read().map_err(failed(REMOVE))?;
            if removing && chosen.contains(&(&name.0, &name.1)) {
                gone.insert(manifest);
                out.releases.push(name);
            } else {
                out.division.needed.insert(manifest);
                kept.insert((name.0, manifest));
            }
        }
        let chosen: BTreeSet<&PatchSetKey> = self.leaving.sets.iter().collect();
        let rows =
            sqlx::query("SELECT product, from_manifest, to_manifest, set_manifest, removing FROM patch_sets")
                .fetch_all(&mut *self.ids.tx)
                .await
                .map_err(failed(REMOVE))?;
        for row in &rows {
            let read = || -> Result<_, sqlx::Error> {
                let key = PatchSetKey {
                    product: row.parsed("product")?,
                    from: ManifestId(row.hash("from_manifest")?),
                    to: ManifestId(row.hash("to_manifest")?),
                };
                let set = row.hash_or_none("set_manifest")?.map(ManifestId);
                Ok((key, set, row.time_or_none("removing")?.is_some()))
            };
            let (key, set, removing) = read().map_err(failed(REMOVE))?;
            let is_kept = |end: ManifestId| kept.contains(&(key.product.clone(), end));
            let ends = is_kept(key.to) && (key.from == ManifestId::NOTHING || is_kept(key.from));
            if ends && !(removing && chosen.contains(&key)) {
                out.division.needed.extend(set);
            } else {
                gone.extend(set);
                out.sets.push(key);
            }
        }
        out.division.unneeded = gone.difference(&out.division.needed).copied().collect();
        Ok(out)
    }

    /// Deletes the releases and patch sets of the last division, these chunks, and the packs that
    /// nothing needs then. Returns the objects of those packs, which are noted as doomed.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn finish(mut self, chunks: &[ChunkId]) -> Result<Vec<String>, DbError> {
        let Rows { releases, sets, .. } = match self.rows.take() {
            Some(rows) => rows,
            None => self.rows().await?,
        };
        let engine = self.ids.engine();
        let tx = &mut self.ids.tx;
        for (product, version) in releases {
            sqlx::query("DELETE FROM releases WHERE product = $1 AND version = $2")
                .bind(product.to_string())
                .bind(version.to_string())
                .execute(&mut **tx)
                .await
                .map_err(failed(REMOVE))?;
        }
        for key in sets {
            sqlx::query(
                "DELETE FROM patch_sets WHERE product = $1 AND from_manifest = $2 AND to_manifest = $3",
            )
            .bind(key.product.to_string())
            .bind(key.from.as_bytes().as_slice())
            .bind(key.to.as_bytes().as_slice())
            .execute(&mut **tx)
            .await
            .map_err(failed(REMOVE))?;
        }
        let mut packs: BTreeSet<u64> = BTreeSet::new();
        for ids in chunks.chunks(LIST_MAX) {
            let list = engine.list(1, padded_len(ids));
            let sql = format!("DELETE FROM chunks WHERE id IN ({list}) RETURNING pack");
            let mut query = sqlx::query(sqlx::AssertSqlSafe(sql));
            for id in padded(ids) {
                query = query.bind(signed(id.0));
            }
            for row in query.fetch_all(&mut **tx).await.map_err(failed(REMOVE))? {
                packs.insert(row.number("pack").map_err(failed(REMOVE))?);
            }
        }
        let mut objects = Vec::new();
        for pack in packs {
            let row = sqlx::query(
                "DELETE FROM packs WHERE id = $1 AND upload IS NULL \
                 AND NOT EXISTS (SELECT 1 FROM chunks WHERE chunks.pack = packs.id) RETURNING object",
            )
            .bind(signed(pack))
            .fetch_optional(&mut **tx)
            .await
            .map_err(failed(REMOVE))?;
            let Some(row) = row else { continue };
            let object = row.text("object").map_err(failed(REMOVE))?;
            sqlx::query("INSERT INTO doomed (object, since) VALUES ($1, 0) ON CONFLICT (object) DO NOTHING")
                .bind(object.clone())
                .execute(&mut **tx)
                .await
                .map_err(failed(REMOVE))?;
            objects.push(object);
        }
        self.ids.tx.commit().await.map_err(failed(REMOVE))?;
        Ok(objects)
    }
}
