//! Sums over a whole fleet, which are costly to make: each is kept for a while, the longer the more
//! it cost. A page that finds one too old shows it all the same, and a newer one is made meanwhile.
//! A sum that is made at once is never kept, so a small fleet is shown as it is.

use std::collections::HashMap;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use distd_core::api::{FleetStatus, RolloutDetail, Word};
use tokio::time::Instant;

use super::super::{ApiError, App, fleet, rollouts};
use crate::db::RolloutRow;

/// Longest making of a sum that is not kept.
const AT_ONCE: Duration = Duration::from_millis(50);

/// Time for which a sum is new, as a multiple of the time that it took: at most an eighth of one
/// core makes each of them.
const NEW_FOR: u32 = 8;

/// Longest time for which a sum is new.
const NEW_MAX: Duration = Duration::from_secs(20);

/// Age at which a sum is not shown any more. Nobody has looked for so long.
const OLD: Duration = Duration::from_secs(120);

/// Most sums kept of a kind.
const KEPT_MAX: usize = 64;

/// A sum, and the cost of it.
struct Made<V> {
    value: Arc<V>,
    at: Instant,
    took: Duration,
}

impl<V> Made<V> {
    fn is_new(&self) -> bool {
        self.took > AT_ONCE && self.at.elapsed() < (self.took * NEW_FOR).min(NEW_MAX)
    }

    fn can_be_shown(&self) -> bool {
        self.took > AT_ONCE && self.at.elapsed() < OLD
    }
}

/// One sum: the newest, and the turn of the one who makes the next.
struct Place<V> {
    newest: Mutex<Option<Made<V>>>,
    turn: tokio::sync::Mutex<()>,
}

impl<V> Default for Place<V> {
    fn default() -> Self {
        Self { newest: Mutex::default(), turn: tokio::sync::Mutex::default() }
    }
}

impl<V> Place<V> {
    fn find(&self, fits: impl Fn(&Made<V>) -> bool) -> Option<Arc<V>> {
        let newest = self.newest.lock().unwrap_or_else(PoisonError::into_inner);
        newest.as_ref().filter(|made| fits(made)).map(|made| made.value.clone())
    }

    /// Makes the sum, one caller at a time.
    async fn make(
        &self,
        app: &App,
        make: impl Future<Output = Result<V, ApiError>>,
    ) -> Result<Arc<V>, ApiError> {
        let _turn = self.turn.lock().await;
        if let Some(value) = self.find(Made::is_new) {
            return Ok(value);
        }
        let _among_all = app.live.turn().await;
        let began = Instant::now();
        let value = Arc::new(make.await?);
        let made = Made { value: value.clone(), at: Instant::now(), took: began.elapsed() };
        *self.newest.lock().unwrap_or_else(PoisonError::into_inner) = Some(made);
        Ok(value)
    }
}

/// The sums of one kind, by key.
struct Kind<V>(Mutex<HashMap<String, Arc<Place<V>>>>);

impl<V> Default for Kind<V> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<V: Send + Sync + 'static> Kind<V> {
    fn place(&self, key: String) -> Arc<Place<V>> {
        let mut places = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !places.contains_key(&key) && places.len() >= KEPT_MAX {
            places.retain(|_, place| place.find(Made::can_be_shown).is_some());
            if places.len() >= KEPT_MAX {
                places.clear();
            }
        }
        places.entry(key).or_default().clone()
    }

    async fn get<F>(
        &self,
        app: &Arc<App>,
        key: String,
        make: impl FnOnce(Arc<App>) -> F,
    ) -> Result<Arc<V>, ApiError>
    where
        F: Future<Output = Result<V, ApiError>> + Send + 'static,
    {
        let place = self.place(key);
        if let Some(value) = place.find(Made::is_new) {
            return Ok(value);
        }
        let work = make(app.clone());
        let Some(value) = place.find(Made::can_be_shown) else { return place.make(app, work).await };
        // Whoever makes it tells all open pages.
        if place.turn.try_lock().is_ok() {
            let app = app.clone();
            tokio::spawn(async move {
                match place.make(&app, work).await {
                    Ok(_) => app.live.note_news(),
                    Err(error) => error.log(),
                }
            });
        }
        Ok(value)
    }
}

/// The sums that pages show.
#[derive(Default)]
pub(in super::super) struct Sums {
    fleet: Kind<FleetStatus>,
    rollouts: Kind<RolloutDetail>,
}

/// Sums over all devices.
pub(super) async fn of_fleet(app: &Arc<App>) -> Result<Arc<FleetStatus>, ApiError> {
    let make = |app: Arc<App>| async move { fleet::sum_up(&app, &fleet::Selected::default()).await };
    app.sums.fleet.get(app, String::new(), make).await
}

/// A rollout with the sums of its waves. Each state of a rollout has sums of its own.
pub(super) async fn of_rollout(app: &Arc<App>, row: RolloutRow) -> Result<Arc<RolloutDetail>, ApiError> {
    let waves = app.origin.db().rollout_waves(&row.id).await?;
    let open = waves.iter().filter(|wave| wave.opened.is_some()).count();
    let key = format!("{} {} {} {open}", row.id, row.stage.as_str(), Word::from(row.approval));
    let make = |app: Arc<App>| async move {
        let status = app.origin.rollout_status(&row).await?;
        rollouts::detail(&app, status).await
    };
    app.sums.rollouts.get(app, key, make).await
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::super::super::HttpOptions;
    use super::*;
    use crate::origin::{Origin, Places, Tuning};

    #[tokio::test]
    async fn a_costly_sum_is_kept_and_made_again_behind_the_page() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let places = Places::in_dir(directory.path());
        let origin = Origin::open(&places, Tuning::default()).await.expect("an origin");
        let app = App::new(origin, Arc::default(), HttpOptions::default());
        tokio::time::pause();
        let (kind, made) = (Kind::<u32>::default(), Arc::new(AtomicU32::new(0)));
        let get = async |key: &str, cost: u64| {
            let made = made.clone();
            let make = |_| async move {
                tokio::time::sleep(Duration::from_millis(cost)).await;
                Ok(made.fetch_add(1, Ordering::Relaxed) + 1)
            };
            *kind.get(&app, key.to_owned(), make).await.expect("a sum")
        };
        assert_eq!([get("cheap", 1).await, get("cheap", 1).await], [1, 2], "a cheap one is always new");
        assert_eq!([get("a", 1000).await, get("a", 1000).await, get("b", 1000).await], [3, 3, 4]);
        tokio::time::advance(NEW_MAX).await;
        assert_eq!(get("a", 1000).await, 3, "shown though it is old");
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert_eq!(get("a", 1000).await, 5, "made meanwhile");
        tokio::time::advance(OLD).await;
        assert_eq!(get("a", 1000).await, 6, "nobody had looked for long");
    }

    #[test]
    fn sums_of_many_states_do_not_pile_up() {
        let kind = Kind::<u32>::default();
        for key in 0..10 * KEPT_MAX {
            kind.place(key.to_string());
        }
        assert!(kind.0.lock().expect("not poisoned").len() <= KEPT_MAX);
    }
}
