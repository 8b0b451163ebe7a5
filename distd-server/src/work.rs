//! A worker: a process that makes patch sets for the origins on a database and a bucket, and does
//! nothing else. It needs neither keys nor an address.

use std::sync::Arc;
use std::time::Duration;

use distd_core::error::Chain;
use distd_peer::random;
use tokio_util::sync::CancellationToken;

use crate::config::Settings;
use crate::db::{Db, DbError, Maker, SetKind, sqlite_path};
use crate::ingest::{Ingest, IngestError};
use crate::locks::{LockError, Locks};
use crate::origin::{DisagreementError, Owner};
use crate::patches::{NextError, PatchMaker};
use crate::replica::note_every;
use crate::store::{Store, StoreError, directory_of};

/// Time between two looks at an empty queue.
const LOOK: Duration = Duration::from_secs(2);

/// Pause after the database failed.
const AGAIN: Duration = Duration::from_secs(10);

/// Reason why a worker ended, or could not begin.
#[derive(Debug, thiserror::Error)]
pub enum WorkError {
    /// Its database or store is one that only one process can use.
    #[error(
        "a worker shares database and store with an origin on another machine: name a PostgreSQL database with --db and \
         a bucket with --store, as the origin does"
    )]
    NotShared,
    /// A lock cannot be taken.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// Its database and store do not belong together.
    #[error(transparent)]
    Disagreement(#[from] DisagreementError),
    /// The directory for views cannot be made.
    #[error("could not use the directory {}: check its permissions and free space", .0.display())]
    Spool(std::path::PathBuf, #[source] std::io::Error),
    /// The database failed.
    #[error(transparent)]
    Db(#[from] DbError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The store could not be compared with the database.
    #[error(transparent)]
    Ingest(#[from] IngestError),
    /// A process that works alone has taken the database.
    #[error(
        "a distd-server that works alone has taken the database over: start this worker again when it has ended"
    )]
    Overtaken,
}

/// Makes patch sets until `stop` is cancelled. `ready` is called once the worker has begun.
///
/// # Errors
/// [`WorkError`].
pub async fn work(
    settings: &Settings,
    stop: &CancellationToken,
    ready: impl FnOnce(&str),
) -> Result<(), WorkError> {
    if sqlite_path(&settings.db).is_some() || directory_of(&settings.store).is_some() {
        return Err(WorkError::NotShared);
    }
    let locks = Locks::take_among_replicas(&settings.places()).await?;
    let db = Db::open_present(&settings.db).await?;
    let store = Store::open(&settings.store)?;
    store.check().await?;
    Owner::check_same(&db, &store, &settings.store).await?;
    let spool = settings.data.join("spool");
    let failed = |error| WorkError::Spool(spool.clone(), error);
    match std::fs::remove_dir_all(&spool) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(failed(error)),
        _ => std::fs::create_dir_all(&spool).map_err(failed)?,
    }
    let tuning = settings.tuning();
    let ingest = Ingest::new(db.clone(), store).with_zstd_level(tuning.zstd_level);
    ingest.look_for_losses().await?;
    let id = hex::encode(random::bytes::<8>());
    let maker = PatchMaker::new(ingest, spool, tuning.patches).named(Maker(id.clone()));
    let maker = Arc::new(maker);
    ready(&id);
    let making = async {
        tokio::join!(make_all(&maker, SetKind::Pair, stop), make_all(&maker, SetKind::Solid, stop));
    };
    let ended = tokio::select! {
        () = making => Ok(()),
        () = note_every(&db, &id, "worker", "") => unreachable!("it goes on for ever"),
        () = locks.lost().cancelled_owned() => Err(WorkError::Overtaken),
    };
    let _ = db.forget_replica(&id).await;
    db.close().await;
    ended
}

async fn make_all(maker: &PatchMaker, kind: SetKind, stop: &CancellationToken) {
    while !stop.is_cancelled() {
        let wait = match maker.make_next(kind, stop).await {
            Ok(_) => continue,
            Err(NextError::Empty) => LOOK,
            Err(NextError::Db(error)) => {
                tracing::error!(error = %Chain(&error), "no patches are made for a while");
                AGAIN
            }
        };
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = stop.cancelled() => {}
        }
    }
}
