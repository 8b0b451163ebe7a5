//! Resolution of `PRODUCT@VERSION` or `PRODUCT:CHANNEL` to a verified manifest.

use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, anyhow};
use distd_core::NodeId;
use distd_core::error::Chain;
use distd_core::fleet::rollout::{Decision, Device, Held, RolloutDoc, RolloutId, RolloutState, TurnAnswer};
use distd_core::fleet::{NodeStatement, SignedHalt};
use distd_core::manifest::Manifest;
use distd_core::names::{Name, Wanted, release_target};
use distd_peer::bundle::Bundle;
use distd_peer::capabilities::Capabilities;
use distd_peer::clock::unix_now;
use distd_peer::net::{Dialer, Outbound};
use distd_peer::news::Newsroom;
use distd_peer::parents::Parents;
use distd_peer::quarantine::Quarantine;
use distd_peer::trust::halt;
use distd_peer::trust::identity::NodeIdentity;
use distd_peer::trust::report::ReportSigner;
use distd_peer::trust::statement::{self, StatementQuestion};
use distd_peer::trust::tuf::{ChannelDoc, Choice, Choose, Chosen, Offline, Resolved, TufClient, TufError};
use distd_peer::trust::turn::TurnQuestion;
use rustls::pki_types::CertificateDer;

use super::metadata::ParentMetadata;
use super::network::Network;
use super::request::PullRequest;
use crate::failure::{Code, Failure, is_shut_out};
use crate::share::{DeviceNode, Lateral, Sharing, anywhere};

/// Knowledge of a device, by which a rollout decides about it.
#[derive(Clone, Copy)]
pub(super) struct About<'a> {
    /// The realm's statement about it.
    pub(super) statement: Option<&'a NodeStatement>,
    /// Version that it has.
    pub(super) installed: Option<&'a Name>,
    /// Whether it asks for a turn before it begins.
    pub(super) asks_for_turns: bool,
}

/// A device's connections to its realm, with what it knows of itself.
pub(super) struct Session {
    network: Network,
    tuf: TufClient,
    node: NodeId,
    signer: ReportSigner,
    ca: CertificateDer<'static>,
    data: PathBuf,
    /// News of the agent in this process.
    news: Option<Arc<Newsroom>>,
}

impl Deref for Session {
    type Target = Network;

    fn deref(&self) -> &Network {
        &self.network
    }
}

impl Session {
    /// Loads the identity in `data` and prepares to dial `parents`.
    ///
    /// # Errors
    /// Failures with [`Code::Refused`] when the device is not enrolled.
    pub(super) async fn open(
        data: &Path,
        parents: Vec<String>,
        sharing: &Sharing,
        outbound: Arc<Outbound>,
        news: Option<Arc<Newsroom>>,
    ) -> anyhow::Result<Self> {
        let refused = Failure::refused;
        let node = DeviceNode::open(data, parents, anywhere(0), false, sharing, outbound).await?;
        let root = node.identity.root_json().context("the device has no TUF root").map_err(refused)?;
        let tuf = TufClient::open(data, root).map_err(|e| refused(e.into()))?;
        let lateral = match sharing.enabled {
            true => Some(Arc::new(Lateral::start(&node, sharing, false, news.clone()).map_err(refused)?)),
            false => None,
        };
        let ca = node.identity.ca_der().context("the device has no CA certificate").map_err(refused)?.clone();
        let id = node.identity.node_id();
        let signer = ReportSigner::new(&node.identity).map_err(|e| refused(e.into()))?;
        let network = Network::new(node.parents, node.endpoint, lateral, sharing.download());
        Ok(Self { network, tuf, node: id, signer, ca, data: data.to_owned(), news })
    }

    /// Prepares to dial `parents`, which are inside this process, as a device of no realm that
    /// trusts the root metadata `root`. What it remembers is in `data`.
    ///
    /// # Errors
    /// Failures with [`Code::Refused`] when `root` is no root metadata.
    pub(super) fn of_root(
        data: &Path,
        parents: Vec<String>,
        root: &[u8],
        outbound: Arc<Outbound>,
    ) -> anyhow::Result<Self> {
        let refused = Failure::refused;
        let identity = NodeIdentity::load_or_create(data).map_err(|e| refused(e.into()))?;
        let dialer = Dialer::local(outbound).map_err(|e| Failure::new(Code::Local, e.into()))?;
        let quarantine = Arc::new(Quarantine::load(&data.join("quarantine.json")));
        // No statement, turn, notice or capability of this realm verifies, and none is asked for.
        let ca = CertificateDer::from(Vec::new());
        let node = identity.node_id();
        let capabilities = Capabilities::load(node, ca.clone(), &data.join("capabilities"));
        Ok(Self {
            network: Network::local(Arc::new(Parents::new(dialer, parents, quarantine, capabilities))),
            tuf: TufClient::open(data, root).map_err(|e| refused(e.into()))?,
            node,
            signer: ReportSigner::new(&identity).map_err(|e| refused(e.into()))?,
            ca,
            data: data.to_owned(),
            news: None,
        })
    }

    /// Says that the only parent is a bundle.
    pub(super) fn of_bundle(mut self, bundle: Arc<Bundle>) -> Self {
        self.network.bundle = Some(bundle);
        self
    }

    /// Id of this device.
    pub(super) fn node(&self) -> NodeId {
        self.node
    }

    /// Asks for this device's capabilities for the releases to which `wanted` and a pin of the
    /// device may lead.
    pub(super) async fn ask_capabilities(&self, wanted: &Wanted, statement: Option<&NodeStatement>) {
        if self.endpoint.is_none() {
            return;
        }
        let pinned = statement.and_then(|statement| pinned_target(statement, wanted));
        let targets = [wanted.target_name()].into_iter().chain(pinned).collect();
        self.parents.ask_capabilities(Vec::new(), targets).await;
    }

    /// Returns the labels and pins of this device. Asks the parents for them, if a channel is
    /// wanted and the last ones are not fresh any more; while no parent answers, those that came
    /// last hold.
    pub(super) async fn statement(&self, request: &PullRequest) -> Option<NodeStatement> {
        let (has, age) = statement::kept(&self.data, &self.node, &self.ca).unzip();
        let is_fresh = age.is_some_and(|age| age < request.labels_fresh);
        // A bundle cannot ask the realm.
        if is_fresh || self.bundle.is_some() || !matches!(request.wanted, Wanted::Channel { .. }) {
            return has;
        }
        let question = StatementQuestion::new(self.node, has.as_ref().map(NodeStatement::digest)).encode();
        for index in 0..self.parents.len() {
            let Ok(answer) = self.parents.ask(index, &question).await else { continue };
            let (data, node, ca, had) = (self.data.clone(), self.node, self.ca.clone(), has.clone());
            let taking = move || statement::take(&answer, &data, &node, &ca, had.as_ref());
            match tokio::task::spawn_blocking(taking).await {
                Ok(Ok(Some(newer))) => return Some(newer),
                Ok(Err(error)) => {
                    tracing::warn!(error = %Chain(&error), "the answer about this device's labels is not used");
                }
                Ok(Ok(None)) | Err(_) => {}
            }
            break;
        }
        has
    }

    /// Asks the parents, nearest first, whether this device may begin the attempt `number` at a
    /// rollout now.
    ///
    /// # Errors
    /// Failures with [`Code::Network`] when no parent answers, with [`Code::Refused`] when the
    /// realm gives no turn.
    pub(super) async fn ask_turn(&self, rollout: RolloutId, number: u32) -> anyhow::Result<TurnAnswer> {
        let mut last = Failure::new(Code::Network, anyhow!("no parent to ask for a turn in the rollout"));
        for index in 0..self.parents.len() {
            let question = TurnQuestion::new(&self.signer, rollout, number)?;
            let answer = match self.parents.ask(index, &question.clone().encode()).await {
                Ok(answer) => answer,
                Err(error) => {
                    let error =
                        anyhow::Error::new(error).context("no parent answered the question for a turn");
                    last = Failure::new(Code::Network, error);
                    continue;
                }
            };
            match question.read(&answer, &self.ca) {
                Ok(answer) => return Ok(answer),
                // A relay may lie; the next parent may not.
                Err(error) => last = Failure::new(Code::Refused, error.into()),
            }
        }
        Err(last.into())
    }

    /// Resolves `wanted` to a manifest by signed metadata. `about` and `failures` say what is known
    /// of this device, and how often a release failed on it.
    pub(super) async fn resolve(
        &self,
        wanted: &Wanted,
        about: About<'_>,
        failures: &(dyn Fn(&RolloutDoc) -> u32 + Send + Sync),
    ) -> anyhow::Result<Resolved> {
        let About { statement, installed, asks_for_turns } = about;
        let labels = statement.map(NodeStatement::for_selectors);
        let kept = halt::kept(&self.data, &self.ca, unix_now());
        let choose = |doc: &ChannelDoc| {
            let pin = statement.and_then(|statement| statement.pins.get(&doc.product));
            if let Some(pin) = pin {
                let release = Chosen::Version(pin.clone());
                return Choice { release, held: Some(Held::Pinned) };
            }
            let Some(rollout) = &doc.rollout else { return Choice::default() };
            let failures = failures(rollout);
            let mut rollout = rollout.clone();
            if self.is_halted(&kept, &rollout.id, doc.counter) {
                rollout.state = RolloutState::Halted;
            }
            let device =
                Device { node: &self.node, labels: labels.as_ref(), installed, failures, asks_for_turns };
            match rollout.decide(&device) {
                Decision::Follow => Choice { release: Chosen::OfRollout, held: None },
                Decision::Via(version) => Choice { release: Chosen::Version(version), held: None },
                Decision::Hold(held) => Choice { release: Chosen::OfChannel, held: Some(held) },
            }
        };
        let pinned = statement.and_then(|statement| pinned_target(statement, wanted));
        let also: Vec<_> = pinned.into_iter().collect();
        self.resolve_signed(wanted, &also, &choose).await
    }

    /// Whether a halt notice stops a rollout of which this device has the document with this
    /// counter: one that is kept on disk, or one that has just come.
    fn is_halted(&self, kept: &[SignedHalt], rollout: &RolloutId, counter: u64) -> bool {
        let by_kept = kept.iter().map(|signed| signed.notice);
        by_kept.into_iter().any(|notice| notice.rollout == *rollout && notice.counter > counter)
            || self.news.as_ref().is_some_and(|news| news.is_halted(rollout, counter))
    }

    /// Resolves `wanted` by signed metadata. A parent whose answer does not verify is skipped.
    pub(super) async fn resolve_signed(
        &self,
        wanted: &Wanted,
        also: &[String],
        choose: Choose<'_>,
    ) -> anyhow::Result<Resolved> {
        let mut last = None;
        let mut unreachable = true;
        for first in 0..self.parents.len() {
            let source = Arc::new(ParentMetadata { parents: self.parents.clone(), first });
            match self.tuf.resolve_choosing(source, wanted, unix_now(), also, choose).await {
                Ok(resolved) => return Ok(resolved),
                Err(error) => {
                    let retry = blames_the_parent(&error);
                    // A parent that refuses this device did answer.
                    unreachable &= matches!(&error, TufError::Source(cause) if !is_shut_out(&**cause));
                    last = Some(error);
                    if !retry {
                        break;
                    }
                }
            }
        }
        if unreachable {
            match self.tuf.resolve_choosing(Arc::new(Offline), wanted, unix_now(), also, choose).await {
                Ok(resolved) => {
                    tracing::warn!("no parent answered; using earlier signed metadata");
                    return Ok(resolved);
                }
                Err(error) if last.is_none() => last = Some(error),
                Err(_) => {}
            }
        }
        let error = last.map_or_else(|| anyhow!("no parent to ask"), anyhow::Error::new);
        let code = crate::failure::code_of(&error);
        Err(Failure::new(code, error).into())
    }

    /// Gets the manifest and fetches only nodes that none of `held` has. When one parent fails, the
    /// next is asked.
    pub(super) async fn manifest(&self, resolved: &Resolved, held: &[&Manifest]) -> anyhow::Result<Manifest> {
        self.manifest_of(resolved.manifest, Some(resolved.root_node.clone()), held).await
    }
}

/// Target of the release to which a device is pinned, if `wanted` is a channel of that product.
fn pinned_target(statement: &NodeStatement, wanted: &Wanted) -> Option<String> {
    let Wanted::Channel { product, .. } = wanted else { return None };
    statement.pins.get(product).map(|version| release_target(product, version))
}

/// Returns whether another parent could give a better answer.
fn blames_the_parent(error: &TufError) -> bool {
    !matches!(
        error,
        TufError::UnknownTarget(_)
            | TufError::BadTarget { .. }
            | TufError::ClockBehind { .. }
            | TufError::Source(_)
            | TufError::File(_)
            | TufError::Store(_)
    )
}
