//! A connection to a parent or neighbour, on which swarms are opened and metadata is requested.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use distd_core::ManifestId;
use distd_core::bounds::METADATA_ANSWER_MAX;
use distd_core::proto::Frame;
use distd_core::proto::close::CloseCode;
use distd_core::proto::control::{Control, ControlError, ControlEvent, Side};
use distd_core::proto::frame::{Cost, Handshake, MetadataRequest, Node, NodeRequest, PeerRecord, Ranges};
use distd_core::proto::stream::StreamKind;
use distd_core::ranges::ChunkRanges;
use quinn::Endpoint;

use super::connection::{Carrier, Connection};
use super::dialer::{DialError, Dialer};
use super::local::LocalParent;
use super::{FrameReader, FrameWriter, Meter, WireError};
use crate::trust::identity::{LEAF_NAME, NodeId};
use crate::trust::tls::PeerRefused;
use distd_core::role::Role;

/// Time that a dialled neighbour may take to answer.
const CONNECT: Duration = Duration::from_secs(10);

/// Time for which a stream may stay silent. A relay may be waiting for its own parent meanwhile.
const STALL: Duration = Duration::from_secs(20);

/// Maximum number of nodes in one answer: a 16 TiB artifact has fewer.
const NODES_MAX: usize = 4 << 20;

/// Reason why a parent or neighbour could not be used.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// Dialling failed: no node answered, or the node is not of this realm.
    #[error(transparent)]
    Dial(#[from] DialError),
    /// The peer's certificate does not let it be a parent or neighbour.
    #[error("{0} cannot be used as a parent or neighbour")]
    Peer(String, #[source] PeerRefused),
    /// A stream failed.
    #[error("the exchange with {0} broke off")]
    Wire(String, #[source] WireError),
    /// The peer broke the protocol.
    #[error("{0} broke the protocol")]
    Control(String, #[source] ControlError),
    /// Another node than the expected one answered.
    #[error("{0} is another node than the expected neighbour")]
    OtherNode(String),
    /// The peer sent a frame that has no place in the exchange.
    #[error("{0} sent an unexpected frame")]
    Misplaced(String),
}

impl LinkError {
    /// Whether the peer broke the protocol, so that trying it again cannot help.
    pub fn is_breach(&self) -> bool {
        matches!(self, Self::Control(..) | Self::Misplaced(..) | Self::Wire(_, WireError::Decode(_)))
    }
}

/// An established connection to a parent or neighbour.
pub struct Link {
    connection: Connection,
    address: String,
    role: Role,
    node_id: NodeId,
    meter: Arc<Meter>,
}

impl Link {
    /// Dials `address` (`HOST:PORT`) and checks that a parent of this realm answers. Traffic is
    /// counted on the meter of the parent's role. `now` is unix seconds.
    ///
    /// # Errors
    /// [`LinkError`].
    pub async fn connect(
        dialer: &Dialer,
        address: &str,
        relay: &Arc<Meter>,
        origin: &Arc<Meter>,
        now: u64,
    ) -> Result<Self, LinkError> {
        let connection = dialer.dial(address).await?;
        let mut link = Self::established(connection, address, relay, now)?;
        if link.role == Role::Origin {
            link.meter = origin.clone();
        }
        link.meter.round_trip();
        Ok(link)
    }

    /// Dials a neighbour over QUIC, and checks that exactly this node answers and is a device of
    /// this realm. `now` is unix seconds.
    ///
    /// # Errors
    /// [`LinkError`].
    pub async fn connect_neighbour(
        endpoint: &Endpoint,
        address: SocketAddr,
        node: NodeId,
        meter: &Arc<Meter>,
        now: u64,
    ) -> Result<Self, LinkError> {
        let text = address.to_string();
        let failed = |e: Box<dyn std::error::Error + Send + Sync>| DialError::Connect(text.clone(), e);
        let connecting = endpoint.connect(address, LEAF_NAME).map_err(|e| failed(e.into()))?;
        let connection = tokio::time::timeout(CONNECT, connecting)
            .await
            .map_err(|_| DialError::Silent { address: text.clone(), over: "UDP" })?
            .map_err(|e| failed(e.into()))?;
        let link = Self::established(Connection::Quic(connection), &text, meter, now)?;
        if link.node_id != node || link.role != Role::Leaf {
            link.close(CloseCode::Done);
            return Err(LinkError::OtherNode(text));
        }
        Ok(link)
    }

    /// Connects to a parent inside this process, which `name` stands for in errors.
    pub(crate) fn local(parent: &LocalParent, name: &str) -> Self {
        Self {
            connection: Connection::Local(parent.connect()),
            address: name.to_owned(),
            role: Role::Relay,
            node_id: parent.node(),
            meter: Arc::default(),
        }
    }

    fn established(
        connection: Connection,
        address: &str,
        meter: &Arc<Meter>,
        now: u64,
    ) -> Result<Self, LinkError> {
        let identity = connection.identity(now).map_err(|e| LinkError::Peer(address.to_owned(), e))?;
        Ok(Self {
            connection,
            address: address.to_owned(),
            role: identity.role,
            node_id: identity.node_id,
            meter: meter.clone(),
        })
    }

    /// Address that packets are sent to: the proxy's, if there is one.
    pub fn remote(&self) -> SocketAddr {
        self.connection.remote()
    }

    /// Transport of the connection.
    pub fn carrier(&self) -> Carrier {
        self.connection.carrier()
    }

    /// Whether the connection ran over UDP and ended because nothing came any more.
    pub(crate) fn starved(&self) -> bool {
        self.connection.starved()
    }

    /// Role of the peer.
    pub fn role(&self) -> Role {
        self.role
    }

    /// Id of the peer's node.
    pub fn node_id(&self) -> NodeId {
        self.node_id
    }

    /// Address that was dialled.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Counters of the connection's traffic.
    pub fn meter(&self) -> &Arc<Meter> {
        &self.meter
    }

    /// Whether the connection is over.
    pub fn is_closed(&self) -> bool {
        self.connection.is_closed()
    }

    /// Waits until the connection is over.
    pub async fn closed(&self) {
        self.connection.closed().await;
    }

    /// Closes the connection with a code.
    pub fn close(&self, code: CloseCode) {
        self.connection.close(code);
    }

    pub(crate) fn wire(&self, error: WireError) -> LinkError {
        LinkError::Wire(self.address.clone(), error)
    }

    pub(crate) async fn open(&self, kind: StreamKind) -> Result<(FrameWriter, FrameReader), LinkError> {
        let (_, send, recv) = self.connection.open().await.map_err(|e| self.wire(e))?;
        self.meter.request();
        let mut writer = FrameWriter::new(send);
        writer.stream_kind(kind).await.map_err(|e| self.wire(e))?;
        Ok((writer, FrameReader::new(recv, self.meter.clone(), STALL)))
    }

    /// Opens a stream on which frames may be far apart in time. The connection's own idle timeout
    /// is the bound.
    pub(crate) async fn open_lasting(
        &self,
        kind: StreamKind,
    ) -> Result<(FrameWriter, FrameReader), LinkError> {
        let (_, send, recv) = self.connection.open().await.map_err(|e| self.wire(e))?;
        let mut writer = FrameWriter::new(send);
        writer.stream_kind(kind).await.map_err(|e| self.wire(e))?;
        let reader = FrameReader::new(recv, self.meter.clone(), Duration::from_secs(u64::from(u32::MAX)));
        Ok((writer, reader))
    }

    /// Asks for TUF metadata: sends the bytes of a question and returns those of the answer, at
    /// most `METADATA_ANSWER_MAX`.
    ///
    /// # Errors
    /// [`LinkError`].
    pub async fn metadata(&self, query: Bytes) -> Result<Bytes, LinkError> {
        let (mut writer, mut reader) = self.open(StreamKind::Metadata).await?;
        writer.send(&Frame::MetadataRequest(MetadataRequest(query))).await.map_err(|e| self.wire(e))?;
        writer.finish();
        let mut answer = BytesMut::new();
        while let Some(frame) = reader.next().await.map_err(|e| self.wire(e))? {
            match frame {
                Frame::Metadata(piece) if answer.len() + piece.0.len() <= METADATA_ANSWER_MAX => {
                    answer.extend_from_slice(&piece.0);
                }
                Frame::Unknown { .. } => {}
                _ => return Err(LinkError::Misplaced(self.address.clone())),
            }
        }
        self.meter.round_trip();
        Ok(answer.freeze())
    }

    /// Opens the swarm of `manifest` with this node's capability for it, which may be empty. Does
    /// not wait for the answer: requests may follow at once.
    ///
    /// # Errors
    /// [`LinkError`].
    pub async fn open_swarm(
        self: &Arc<Self>,
        manifest: ManifestId,
        capability: Bytes,
    ) -> Result<SwarmLink, LinkError> {
        let handshake = Handshake { capability, ..Handshake::new(manifest) };
        self.open_control(Control::new(Side::Opener, handshake)).await
    }

    /// Opens the swarm of `manifest` and takes part in the exchange of the site: sends this node's
    /// record with the handshake, and asks the peer for neighbours.
    ///
    /// # Errors
    /// [`LinkError`].
    pub async fn open_swarm_exchanging(
        self: &Arc<Self>,
        manifest: ManifestId,
        capability: Bytes,
        own: PeerRecord,
    ) -> Result<SwarmLink, LinkError> {
        let handshake = Handshake { capability, exchanges: true, ..Handshake::new(manifest) };
        let mut control = Control::new(Side::Opener, handshake);
        control.send_peers(vec![own]);
        control.want_peers();
        self.open_control(control).await
    }

    async fn open_control(self: &Arc<Self>, mut control: Control) -> Result<SwarmLink, LinkError> {
        let (control_id, send, recv) = self.connection.open().await.map_err(|e| self.wire(e))?;
        let mut writer = FrameWriter::new(send);
        writer.stream_kind(StreamKind::Control).await.map_err(|e| self.wire(e))?;
        while let Some(frame) = control.poll_transmit() {
            writer.send(&frame).await.map_err(|e| self.wire(e))?;
        }
        // HAVE and CHOKE may be far apart in time. The connection's own idle timeout is the bound.
        let reader = FrameReader::new(recv, self.meter.clone(), Duration::from_secs(u64::from(u32::MAX)));
        Ok(SwarmLink { link: self.clone(), control_id, control, writer, reader })
    }
}

/// A swarm that is open on a link.
pub struct SwarmLink {
    link: Arc<Link>,
    control_id: u64,
    control: Control,
    /// Kept open, as its end would close the swarm.
    writer: FrameWriter,
    reader: FrameReader,
}

/// Handle that opens request streams of a swarm, independent of the control stream.
#[derive(Clone)]
pub struct SwarmHandle {
    /// Link on which the swarm is open.
    pub link: Arc<Link>,
    control_id: u64,
}

impl SwarmLink {
    /// Returns a handle for request streams.
    pub fn handle(&self) -> SwarmHandle {
        SwarmHandle { link: self.link.clone(), control_id: self.control_id }
    }

    /// Waits for the next event on the control stream; `None` when the peer closed the swarm.
    ///
    /// # Errors
    /// [`LinkError`]. Cancelling the future loses nothing.
    pub async fn next_event(&mut self) -> Result<Option<ControlEvent>, LinkError> {
        loop {
            let frame = match self.reader.next().await {
                Ok(Some(frame)) => frame,
                Ok(None) => return Ok(None),
                Err(e) => return Err(self.link.wire(e)),
            };
            match self.control.handle_frame(frame) {
                Ok(Some(event)) => return Ok(Some(event)),
                Ok(None) => {}
                Err(error) => {
                    self.reader.stop(error.close_code());
                    return Err(LinkError::Control(self.link.address.clone(), error));
                }
            }
        }
    }

    /// Announces chunks that this side holds, except those announced before.
    ///
    /// # Errors
    /// [`LinkError`].
    pub async fn announce(&mut self, held: &ChunkRanges) -> Result<(), LinkError> {
        self.control.announce(held);
        self.transmit().await
    }

    /// Sends a newer record of this node.
    ///
    /// # Errors
    /// [`LinkError`].
    pub async fn send_record(&mut self, own: PeerRecord) -> Result<(), LinkError> {
        self.control.send_peers(vec![own]);
        self.transmit().await
    }

    /// Sends the nodes from which this side takes nothing, except those sent before.
    ///
    /// # Errors
    /// The connection's error.
    pub async fn shun(&mut self, nodes: &[NodeId]) -> Result<(), LinkError> {
        self.control.shun(nodes);
        self.transmit().await
    }

    /// Sends a newer capability of this node.
    ///
    /// # Errors
    /// The connection's error.
    pub async fn prove(&mut self, capability: Bytes) -> Result<(), LinkError> {
        self.control.prove(capability);
        self.transmit().await
    }

    /// Passes halt notices on.
    ///
    /// # Errors
    /// The connection's error.
    pub(crate) async fn pass_halts(&mut self, notices: Vec<Bytes>) -> Result<(), LinkError> {
        notices.into_iter().for_each(|notice| self.control.pass_halt(notice));
        self.transmit().await
    }

    async fn transmit(&mut self) -> Result<(), LinkError> {
        while let Some(frame) = self.control.poll_transmit() {
            self.writer.send(&frame).await.map_err(|e| self.link.wire(e))?;
        }
        Ok(())
    }

    /// Leaves the swarm after the peer has received everything sent on this stream.
    ///
    /// # Errors
    /// [`LinkError`].
    pub async fn finish(mut self) -> Result<(), LinkError> {
        self.writer.finish();
        while self.next_event().await?.is_some() {}
        Ok(())
    }

    /// Leaves the swarm without waiting.
    pub fn leave(mut self) {
        self.writer.finish();
    }
}

impl SwarmHandle {
    /// Asks for manifest nodes and gives each one to `accept`. Returns how many the peer could not
    /// send; `u32::MAX` means that it knows none of the held manifests and must be asked by hash.
    ///
    /// # Errors
    /// [`LinkError`].
    pub async fn nodes(&self, request: NodeRequest, mut accept: impl FnMut(Node)) -> Result<u32, LinkError> {
        let link = &self.link;
        let (mut writer, mut reader) = link.open(StreamKind::Nodes { control: self.control_id }).await?;
        writer.send(&Frame::NodeRequest(request)).await.map_err(|e| link.wire(e))?;
        writer.finish();
        let mut count = 0;
        while let Some(frame) = reader.next().await.map_err(|e| link.wire(e))? {
            match frame {
                Frame::Integrity(node) if count < NODES_MAX => {
                    count += 1;
                    accept(node);
                }
                Frame::NodesEnd(end) => {
                    link.meter.round_trip();
                    return Ok(end.missing);
                }
                Frame::Unknown { .. } => {}
                _ => return Err(LinkError::Misplaced(link.address.clone())),
            }
        }
        Err(link.wire(WireError::Truncated))
    }

    /// Asks how many bytes some chunks of this swarm would take, at most `REQUEST_CHUNKS_MAX`
    /// chunks.
    ///
    /// # Errors
    /// [`LinkError`].
    pub async fn cost(&self, wanted: &ChunkRanges) -> Result<Cost, LinkError> {
        let link = &self.link;
        let (mut writer, mut reader) = link.open(StreamKind::Nodes { control: self.control_id }).await?;
        for ranges in Ranges::split(wanted) {
            writer.send(&Frame::CostRequest(ranges)).await.map_err(|e| link.wire(e))?;
        }
        writer.finish();
        while let Some(frame) = reader.next().await.map_err(|e| link.wire(e))? {
            match frame {
                Frame::Cost(cost) => {
                    link.meter.round_trip();
                    return Ok(cost);
                }
                Frame::Unknown { .. } => {}
                _ => return Err(LinkError::Misplaced(link.address.clone())),
            }
        }
        Err(link.wire(WireError::Truncated))
    }

    pub(crate) async fn open_batch(&self) -> Result<(FrameWriter, FrameReader), LinkError> {
        self.link.open(StreamKind::Batch { control: self.control_id }).await
    }
}
