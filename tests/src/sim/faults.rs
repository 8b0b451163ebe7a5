//! Starts, crashes and partitions of nodes, and closed connections.

use std::time::Duration;

use distd_core::swarm::DialBackoff;

use super::conn::{ConnNo, End, Payload};
use super::node::{Answering, NodeNo, Role};
use super::rules::Rule;
use super::world::{Event, Sim};

/// Silence after which a connection is dead (`net/endpoint.rs`).
const IDLE: Duration = Duration::from_secs(30);

impl Sim {
    /// Starts a node that was stopped or killed, or a leaf's next attempt.
    pub fn start(&mut self, n: NodeNo) {
        let node = &mut self.nodes[n.0];
        if node.asking.is_some() {
            return;
        }
        if !node.up {
            node.up = true;
            node.starts += 1;
            node.answering = Answering::of(node.role);
        }
        if node.starts == 1 {
            node.began = self.queue.now();
        }
        self.note("start", n.0, [self.nodes[n.0].starts, 0]);
        if self.nodes[n.0].role != Role::Origin {
            self.start_asking(n);
        }
    }

    /// Starts a killed node after `delay`.
    pub fn start_after(&mut self, n: NodeNo, delay: Duration) {
        self.queue.after(delay, Event::Start(n));
    }

    /// Kills a node: its memory is lost, its disk stays, and no peer is told.
    pub fn kill(&mut self, n: NodeNo) {
        self.note("kill", n.0, [0, 0]);
        self.nodes[n.0].up = false;
        self.nodes[n.0].asking = None;
        for conn in std::mem::take(&mut self.nodes[n.0].conns) {
            let end = self.conns[conn.0].end_of(n);
            self.conns[conn.0].set_open(end, false);
            self.conns[conn.0].serving.clear();
            self.queue.after(IDLE, Event::Idle(conn, end.other()));
        }
        self.nodes[n.0].answering = Answering::of(self.nodes[n.0].role);
        self.nodes[n.0].dial_backoff = DialBackoff::default();
    }

    /// Ends a node in order: its connections are closed.
    pub fn leave(&mut self, n: NodeNo) {
        for conn in self.nodes[n.0].conns.iter().copied().collect::<Vec<_>>() {
            let end = self.conns[conn.0].end_of(n);
            self.close(conn, end);
        }
        self.kill(n);
    }

    /// Marks a leaf that will not come back, so that the run does not wait for it.
    pub fn give_up_on(&mut self, n: NodeNo) {
        if self.nodes[n.0].done.is_none() {
            self.incomplete -= 1;
        }
    }

    /// Cuts nodes off from all others; among themselves they still exchange messages.
    pub fn cut(&mut self, nodes: &[NodeNo]) {
        let island = self.nodes.iter().map(|node| node.island).max().unwrap_or(0) + 1;
        for n in nodes {
            self.nodes[n.0].island = island;
            self.note("cut", n.0, [island as u64, 0]);
        }
        self.islands_changed();
    }

    /// Cuts a whole site off.
    pub fn cut_site(&mut self, site: usize) {
        let of_site = (0..self.nodes.len()).filter(|n| self.nodes[*n].site == site);
        self.cut(&of_site.map(NodeNo).collect::<Vec<_>>());
    }

    /// Joins all islands again.
    pub fn heal(&mut self) {
        for n in 0..self.nodes.len() {
            self.nodes[n].island = 0;
        }
        self.note("heal", 0, [0, 0]);
        self.unpark();
    }

    fn islands_changed(&mut self) {
        for conn in 0..self.conns.len() {
            let c = &self.conns[conn];
            if self.nodes[c.opener.0].island == self.nodes[c.answerer.0].island {
                continue;
            }
            for end in [End::Opener, End::Answerer] {
                if self.conns[conn].is_open(end) {
                    self.queue.after(IDLE, Event::Idle(ConnNo(conn), end));
                }
            }
        }
        self.unpark();
    }

    /// Ends a connection whose other end is away: it has been silent for too long.
    pub(super) fn idle(&mut self, conn: ConnNo, end: End) {
        let c = &self.conns[conn.0];
        let apart = self.nodes[c.opener.0].island != self.nodes[c.answerer.0].island;
        if c.is_open(end) && (apart || !c.is_open(end.other())) {
            self.note("idle", c.node(end).0, [conn.0 as u64, 0]);
            self.shut(conn, end);
        }
    }

    /// Answers a dialling node.
    pub(super) fn welcome(&mut self, conn: ConnNo) {
        let n = self.conns[conn.0].answerer;
        self.conns[conn.0].answerer_open = true;
        self.nodes[n.0].conns.insert(conn);
        self.send(conn, End::Answerer, Payload::Welcome);
    }

    /// Closes a connection from one end, and tells the other.
    pub(super) fn close(&mut self, conn: ConnNo, end: End) {
        self.close_for(conn, end, false);
    }

    /// Closes a connection from one end, and tells the other end whether wrong bytes are the
    /// reason.
    pub(super) fn close_for(&mut self, conn: ConnNo, end: End, wrong_bytes: bool) {
        if self.conns[conn.0].is_open(end) {
            self.send(conn, end, Payload::Close(wrong_bytes));
        }
        self.shut(conn, end);
    }

    /// The other end closed the connection.
    pub(super) fn closed(&mut self, conn: ConnNo, end: End, wrong_bytes: bool) {
        self.shut(conn, end);
        let n = self.conns[conn.0].node(end);
        let now = self.clock(n);
        if wrong_bytes
            && self.nodes[n.0].role == Role::Relay
            && let Some(asking) =
                self.nodes[n.0].asking.as_mut().filter(|_| !self.off.contains(&Rule::Unwanted))
        {
            asking.asker.handle_reported_bad_data(now);
            self.drive(n);
        }
    }

    /// Marks one end of a connection as closed.
    pub(super) fn shut(&mut self, conn: ConnNo, end: End) {
        let n = self.conns[conn.0].node(end);
        self.nodes[n.0].conns.remove(&conn);
        if end == End::Answerer {
            return self.shut_answerer(conn);
        }
        let peer = self.conns[conn.0].peer;
        let was_open = std::mem::replace(&mut self.conns[conn.0].opener_open, false);
        if self.is_current(n, peer, conn) {
            self.lost(n, peer);
        }
        if !was_open {
            // An answerer that replies after the dialling was given up gets a refusal.
            self.note("refused", n.0, [conn.0 as u64, 0]);
        }
    }

    fn shut_answerer(&mut self, conn: ConnNo) {
        if !std::mem::replace(&mut self.conns[conn.0].answerer_open, false) {
            return;
        }
        for batch in self.conns[conn.0].serving.keys().copied().collect::<Vec<_>>() {
            self.withdrawn(conn, batch);
        }
        let n = self.conns[conn.0].answerer;
        if let Some(member) = self.conns[conn.0].member.take() {
            self.nodes[n.0].answering.sites.handle_left(member);
        }
    }
}
