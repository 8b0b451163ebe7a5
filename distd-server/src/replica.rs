//! One of several origins on a database and a bucket (docs/replicas.md).
//!
//! One of them leads: it holds the term in the database, signs, collects, and makes every change
//! that only one process may make. The others serve what is there, pass the rest on, and look
//! whether the term has ended. A process that begins or ceases to lead starts its origin anew, in
//! the same process and at the same addresses.

use std::sync::Arc;
use std::time::Duration;

use distd_core::error::Chain;
use distd_peer::clock::unix_now;
use distd_peer::random;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::config::Settings;
use crate::db::{Db, DbError, LeaderRow, ReplicaRow, TERM, Term, redact};
use crate::locks::Locks;
use crate::origin::{OpenError, Part, Places, signed};
use crate::run::{self, Running, StartError};
use crate::tuf::RepositoryError;

/// Time between two renewals of the term.
const RENEW: Duration = Duration::from_secs(TERM.as_secs() / 5);

/// Time between two looks at the term of another process.
const LOOK: Duration = Duration::from_secs(1);

/// Time that requests under way have when a process begins or ceases to lead.
pub const CHANGE: Duration = Duration::from_secs(2);

/// Longest wait at the first start for another process to begin the realm.
const BEGIN: Duration = Duration::from_secs(60);

/// Pause after a start that failed.
const AGAIN: Duration = Duration::from_secs(2);

/// Time between two statements that this process runs.
const NOTE: Duration = Duration::from_secs(5);

/// Reason why a replica cannot work, which starting again does not change.
#[derive(Debug, thiserror::Error)]
pub enum ReplicaError {
    /// There are no keys beside a realm in use.
    #[error(
        "the database {database} belongs to realm {realm}, and {} holds no keys of it: copy realm/ca.key, realm/ca.pem \
         and the directory tuf-keys of another replica there, or name its signer with --signer", keys.display()
    )]
    NoKeys {
        /// Address of the database, without its password.
        database: String,
        /// The realm.
        realm: String,
        /// The directory of the keys.
        keys: std::path::PathBuf,
    },
    /// There are no keys, and the one that leads has not begun the realm yet.
    #[error("another distd-server leads and has not begun the realm yet")]
    NotBegun,
}

/// Records now and then that the process `id` runs; never ends. An origin gives the address of its
/// HTTP side, a worker none.
pub(crate) async fn note_every(db: &Db, id: &str, kind: &str, address: &str) {
    loop {
        let row = ReplicaRow {
            id: id.to_owned(),
            kind: kind.to_owned(),
            address: address.to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            seen: signed(unix_now()),
        };
        if let Err(error) = db.note_replica(&row).await {
            tracing::debug!(error = %Chain(&error), "this process could not be recorded");
        }
        tokio::time::sleep(NOTE).await;
    }
}

/// This process among the replicas.
pub struct Replica {
    settings: Settings,
    places: Places,
    /// Name of the process, new at each start.
    id: String,
    /// Address at which others reach it.
    address: String,
    locks: Locks,
    /// The term as this process saw it last.
    leader: watch::Sender<Option<LeaderRow>>,
    leading: Option<Leading>,
    /// Whether it has served before.
    has_served: bool,
}

/// The term of this process, kept by a task.
struct Leading {
    epoch: u64,
    secret: String,
    lost: CancellationToken,
    stop: CancellationToken,
    task: JoinHandle<Option<Term>>,
}

impl Leading {
    fn keep(term: Term, secret: String) -> Self {
        let (lost, stop) = (CancellationToken::new(), CancellationToken::new());
        let epoch = term.epoch();
        let task = tokio::spawn(renew(term, lost.clone(), stop.clone()));
        Self { epoch, secret, lost, stop, task }
    }

    async fn give_back(self) {
        self.stop.cancel();
        if let Ok(Some(term)) = self.task.await
            && let Err(error) = term.give_back().await
        {
            tracing::warn!(error = %Chain(&error), "the term was not given back, and ends by itself");
        }
    }
}

/// Renews the term until it is lost, or returned because of `stop`.
async fn renew(mut term: Term, lost: CancellationToken, stop: CancellationToken) -> Option<Term> {
    loop {
        tokio::select! {
            () = tokio::time::sleep(RENEW) => {}
            () = stop.cancelled() => return Some(term),
        }
        match term.renew().await {
            Ok(true) => {}
            Ok(false) => {
                tracing::warn!("another distd-server leads since");
                lost.cancel();
                return None;
            }
            // Whoever takes it over ends this process's sessions first, so going on harms nothing.
            Err(error) => tracing::warn!(error = %Chain(&error), "the term could not be renewed"),
        }
    }
}

impl Replica {
    /// Takes this process's place among the replicas. It leads or follows once it is
    /// [started](Self::start).
    ///
    /// # Errors
    /// [`StartError`].
    pub async fn join(settings: Settings, places: Places) -> Result<Self, StartError> {
        let locks = Locks::take_among_replicas(&places).await?;
        // The tables are made before anything is asked of them.
        Db::open(&places.db).await?.close().await;
        let address = settings.advertise.unwrap_or(settings.http).to_string();
        let id = hex::encode(random::bytes::<8>());
        let leader = watch::Sender::new(None);
        Ok(Self { settings, places, id, address, locks, leader, leading: None, has_served: false })
    }

    /// Starts the origin: as the one that leads when the term is free, else as one that follows.
    /// After the first time failures are logged, and it is tried again.
    ///
    /// # Errors
    /// [`StartError`], at the first start.
    pub async fn start(&mut self) -> Result<Running, StartError> {
        let until = tokio::time::Instant::now() + BEGIN;
        loop {
            let error = match self.try_start().await {
                Ok(running) => {
                    self.has_served = true;
                    return Ok(running);
                }
                Err(error) => error,
            };
            if let Some(leading) = self.leading.take() {
                leading.give_back().await;
            }
            // Another process that has the term may just be about to begin the realm.
            let may_come = matches!(
                &error,
                StartError::Open(OpenError::Repository(RepositoryError::Missing(_)))
                    | StartError::Replica(ReplicaError::NotBegun)
            );
            if !(self.has_served || may_come && tokio::time::Instant::now() < until) {
                return Err(error);
            }
            tracing::warn!(error = %Chain(&error), "this origin could not start; trying again");
            tokio::time::sleep(AGAIN).await;
        }
    }

    async fn try_start(&mut self) -> Result<Running, StartError> {
        if self.leading.as_ref().is_none_or(|leading| leading.lost.is_cancelled()) {
            self.leading = self.try_lead().await?;
        }
        let db = Db::open_present(&self.places.db).await?;
        let (realm, leader) = (db.realm().await?, db.leader().await?);
        db.close().await;
        self.check_keys(realm)?;
        let (part, http) = match &self.leading {
            Some(leading) => {
                tracing::info!(epoch = leading.epoch, "this origin leads");
                (Part::Leads(leading.epoch), run::ReplicaPart::Leads(leading.secret.clone()))
            }
            None => {
                tracing::info!("this origin follows another one");
                self.leader.send_replace(leader);
                (Part::Follows, run::ReplicaPart::Follows(self.leader.subscribe()))
            }
        };
        run::start_among_replicas(&self.settings, &self.places, part, http).await
    }

    /// Refuses to go on without keys where it would make a realm of its own.
    fn check_keys(&self, realm: Option<String>) -> Result<(), ReplicaError> {
        let keys = &self.settings.keys;
        if self.settings.signer.is_some() || keys.join("realm/ca.key").exists() {
            return Ok(());
        }
        match realm {
            Some(realm) => {
                let (database, keys) = (redact(&self.places.db), keys.clone());
                Err(ReplicaError::NoKeys { database, realm, keys })
            }
            None if self.leading.is_none() => Err(ReplicaError::NotBegun),
            None => Ok(()),
        }
    }

    async fn try_lead(&self) -> Result<Option<Leading>, DbError> {
        let secret = hex::encode(random::bytes::<32>());
        let taken = Term::try_take(&self.places.db, &self.id, &self.address, &secret).await?;
        Ok(taken.map(|term| Leading::keep(term, secret)))
    }

    /// Waits until this process is to begin or to cease to lead; the caller then stops `running`
    /// and [starts](Self::start) anew. With an error another process uses the database alone.
    ///
    /// # Errors
    /// [`run::Overtaken`].
    pub async fn changes(&mut self, running: &Running) -> Result<(), run::Overtaken> {
        let lost = self.locks.lost();
        tokio::select! {
            () = lost.cancelled() => Err(run::Overtaken::Database),
            () = self.part_changes(running) => Ok(()),
        }
    }

    async fn part_changes(&mut self, running: &Running) {
        let origin = Arc::clone(&running.origin);
        let noted = note_every(origin.db(), &self.id, "origin", &self.address);
        let changed = async {
            if let Some(leading) = &self.leading {
                tokio::select! {
                    () = leading.lost.cancelled() => {}
                    () = origin.overtaken() => {}
                }
                return None;
            }
            loop {
                tokio::time::sleep(LOOK).await;
                let leader = match origin.db().leader().await {
                    Ok(leader) => leader,
                    Err(error) => {
                        tracing::warn!(error = %Chain(&error), "who leads could not be read");
                        continue;
                    }
                };
                let is_held = leader.as_ref().is_some_and(|leader| leader.is_held);
                self.leader.send_if_modified(|known| {
                    let is_news = *known != leader;
                    *known = leader;
                    is_news
                });
                if is_held {
                    continue;
                }
                match self.try_lead().await {
                    Ok(Some(leading)) => return Some(leading),
                    Ok(None) => {}
                    Err(error) => tracing::warn!(error = %Chain(&error), "the term could not be taken"),
                }
            }
        };
        let leading = tokio::select! {
            leading = changed => leading,
            () = noted => unreachable!("it goes on for ever"),
        };
        match leading {
            Some(leading) => self.leading = Some(leading),
            // A term that was not lost is of no use to a process that was overtaken otherwise.
            None => {
                if let Some(leading) = self.leading.take() {
                    leading.give_back().await;
                }
            }
        }
    }

    /// Gives the term back, once the origin is stopped, so that another process leads at once.
    pub async fn leave(self) {
        if let Some(leading) = self.leading {
            leading.give_back().await;
        }
        if let Ok(db) = Db::open_present(&self.places.db).await {
            let _ = db.forget_replica(&self.id).await;
            db.close().await;
        }
    }
}
