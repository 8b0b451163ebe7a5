//! Congestion control: how many bytes a sender has in flight.

mod follow;
mod rate;
#[cfg(test)]
mod tests;

use std::any::Any;
use std::sync::Arc;
use std::time::Instant;

use quinn::congestion::{BbrConfig, Controller, ControllerFactory, CubicConfig, NewRenoConfig};
use quinn_proto::RttEstimator;

use follow::Follow;

/// Choice of the congestion controller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Congestion {
    /// CUBIC, which backs off with each loss (RFC 9438).
    Cubic,
    /// NewReno, which backs off with each loss and recovers more slowly (RFC 9002 §7).
    NewReno,
    /// quinn's BBR, which is experimental. On short paths only the receiver's windows bound the
    /// bytes it has in flight.
    QuinnBbr,
    /// Follows the rate at which bytes arrive, like BBR (draft-ietf-ccwg-bbr), and backs off when
    /// more than a few per cent are lost.
    Follow,
}

impl Congestion {
    pub(super) fn factory(self) -> Arc<dyn ControllerFactory + Send + Sync> {
        match self {
            Self::Cubic => Arc::new(CubicConfig::default()),
            Self::NewReno => Arc::new(NewRenoConfig::default()),
            Self::QuinnBbr => Arc::new(BbrConfig::default()),
            Self::Follow => Arc::new(FollowFactory),
        }
    }
}

struct FollowFactory;

impl ControllerFactory for FollowFactory {
    fn build(self: Arc<Self>, now: Instant, current_mtu: u16) -> Box<dyn Controller> {
        Box::new(Follow::new(now, current_mtu))
    }
}

impl Controller for Follow {
    fn on_sent(&mut self, _: Instant, _: u64, last_packet_number: u64) {
        self.handle_sent(last_packet_number);
    }

    fn on_ack(&mut self, _: Instant, sent: Instant, bytes: u64, _: bool, _: &RttEstimator) {
        self.handle_acked(sent, bytes);
    }

    fn on_end_acks(
        &mut self,
        now: Instant,
        in_flight: u64,
        app_limited: bool,
        largest_packet_num_acked: Option<u64>,
    ) {
        self.handle_acks_end(now, in_flight, app_limited, largest_packet_num_acked);
    }

    fn on_congestion_event(
        &mut self,
        _: Instant,
        _: Instant,
        is_persistent_congestion: bool,
        lost_bytes: u64,
    ) {
        self.handle_lost(lost_bytes, is_persistent_congestion);
    }

    fn on_mtu_update(&mut self, new_mtu: u16) {
        self.handle_mtu(new_mtu);
    }

    fn window(&self) -> u64 {
        self.window()
    }

    fn clone_box(&self) -> Box<dyn Controller> {
        Box::new(self.clone())
    }

    fn initial_window(&self) -> u64 {
        follow::INITIAL_WINDOW
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}
