//! PEX_REScert: addresses where nodes of a site listen, signed by each node (RFC 7574 §3.10,
//! §8.13).
//!
//! The RFC's answer is a membership certificate with one address. Here the answer is a list of
//! records, each with the node's own certificate of the realm, so a node that receives a record
//! third-hand can verify it. The caller verifies, since the caller has the realm's CA.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use bytes::{Buf, BufMut, Bytes};

use crate::bounds::{PEX_RECORDS_MAX, RECORD_ADDRESSES_MAX, RECORD_CERTIFICATE_MAX, SITE_BYTES_MAX};
use crate::proto::codec::DecodeError;

/// First bytes of the signed data, so that a record's signature is valid for nothing else.
pub const RECORD_DOMAIN: &[u8] = b"distd-peer-record-v1\0";

/// Form of a record. Records of another form are skipped.
const RECORD_VERSION: u8 = 1;
/// Flag: the node continues to listen after the connection ends that brought the record.
const RESIDENT: u8 = 1;
const SIGNATURE_BYTES: usize = 64;

const NAME: &str = "PEX_REScert";

/// Addresses where one node listens, as the node itself states them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerRecord {
    /// Number that grows with each record a node makes. Of two records of a node, the one with the
    /// larger number counts.
    pub sequence: u64,
    /// End of validity, unix seconds.
    pub expires: u64,
    /// Whether the node continues to listen after the connection ends that brought the record.
    pub resident: bool,
    /// Site of the node, as the node states it; empty if its parent decides.
    pub site: String,
    /// Addresses where the node listens; empty if the node fetches chunks and serves nobody.
    pub addresses: Vec<SocketAddr>,
    /// The node's certificate, DER.
    pub certificate: Bytes,
    /// Ed25519 signature over [`PeerRecord::signed_bytes`], by the certificate's key.
    pub signature: [u8; SIGNATURE_BYTES],
}

impl PeerRecord {
    /// Returns the bytes the signature covers.
    pub fn signed_bytes(&self) -> Vec<u8> {
        let mut out = RECORD_DOMAIN.to_vec();
        self.put_body(&mut out);
        out
    }

    /// Returns the record's bytes.
    ///
    /// # Panics
    /// If a field is longer than its limit. The code that makes a record keeps to the limits.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        self.put_body(&mut out);
        out.put_slice(&self.signature);
        out
    }

    fn put_body(&self, out: &mut Vec<u8>) {
        assert!(self.site.len() <= SITE_BYTES_MAX && self.addresses.len() <= RECORD_ADDRESSES_MAX);
        assert!(self.certificate.len() <= RECORD_CERTIFICATE_MAX);
        out.put_u8(RECORD_VERSION);
        out.put_u8(if self.resident { RESIDENT } else { 0 });
        out.put_u64(self.sequence);
        out.put_u64(self.expires);
        out.put_u8(self.site.len() as u8);
        out.put_slice(self.site.as_bytes());
        out.put_u8(self.addresses.len() as u8);
        for address in &self.addresses {
            match address.ip() {
                IpAddr::V4(ip) => {
                    out.put_u8(4);
                    out.put_slice(&ip.octets());
                }
                IpAddr::V6(ip) => {
                    out.put_u8(6);
                    out.put_slice(&ip.octets());
                }
            }
            out.put_u16(address.port());
        }
        out.put_u16(self.certificate.len() as u16);
        out.put_slice(&self.certificate);
    }

    /// Reads a record; `None` if it has a later form.
    ///
    /// # Errors
    /// [`DecodeError`].
    pub fn decode(mut body: Bytes) -> Result<Option<Self>, DecodeError> {
        let short = |_| DecodeError::Length(NAME);
        if body.try_get_u8().map_err(short)? != RECORD_VERSION {
            return Ok(None);
        }
        let resident = body.try_get_u8().map_err(short)? & RESIDENT != 0;
        let sequence = body.try_get_u64().map_err(short)?;
        let expires = body.try_get_u64().map_err(short)?;
        let site_len = body.try_get_u8().map_err(short)? as usize;
        if site_len > SITE_BYTES_MAX {
            return Err(DecodeError::Field(NAME, "site"));
        }
        let site = String::from_utf8(take(&mut body, site_len)?.to_vec())
            .map_err(|_| DecodeError::Field(NAME, "site"))?;
        let count = body.try_get_u8().map_err(short)? as usize;
        if count > RECORD_ADDRESSES_MAX {
            return Err(DecodeError::Field(NAME, "number of addresses"));
        }
        let mut addresses = Vec::with_capacity(count);
        for _ in 0..count {
            let ip: IpAddr = match body.try_get_u8().map_err(short)? {
                4 => Ipv4Addr::from_bits(body.try_get_u32().map_err(short)?).into(),
                6 => Ipv6Addr::from_bits(body.try_get_u128().map_err(short)?).into(),
                _ => return Err(DecodeError::Field(NAME, "address family")),
            };
            let address = SocketAddr::new(ip, body.try_get_u16().map_err(short)?);
            if !is_dialable(&address) {
                return Err(DecodeError::Field(NAME, "address"));
            }
            addresses.push(address);
        }
        let len = body.try_get_u16().map_err(short)? as usize;
        if len > RECORD_CERTIFICATE_MAX {
            return Err(DecodeError::Field(NAME, "certificate"));
        }
        let certificate = take(&mut body, len)?;
        let signature = body[..].try_into().map_err(|_| DecodeError::Length(NAME))?;
        Ok(Some(Self { sequence, expires, resident, site, addresses, certificate, signature }))
    }
}

/// Whether one host can have this address: not unspecified, multicast or broadcast, and the port is
/// not 0.
fn is_dialable(address: &SocketAddr) -> bool {
    let ip = address.ip();
    let none = ip.is_unspecified() || ip.is_multicast() || ip == Ipv4Addr::BROADCAST;
    // Refuse IPv4 addresses in IPv6 form: an address has one form.
    address.port() != 0 && !none && ip == ip.to_canonical()
}

fn take(body: &mut Bytes, len: usize) -> Result<Bytes, DecodeError> {
    if body.remaining() < len {
        return Err(DecodeError::Length(NAME));
    }
    Ok(body.split_to(len))
}

/// List of at most [`PEX_RECORDS_MAX`] records. An empty list is an answer too.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerRecords(pub Vec<PeerRecord>);

impl PeerRecords {
    pub(in crate::proto) fn encode(&self, out: &mut impl BufMut) {
        out.put_u8(self.0.len().min(PEX_RECORDS_MAX) as u8);
        for record in self.0.iter().take(PEX_RECORDS_MAX) {
            let bytes = record.encode();
            out.put_u16(bytes.len() as u16);
            out.put_slice(&bytes);
        }
    }

    pub(in crate::proto) fn decode(name: &'static str, mut body: Bytes) -> Result<Self, DecodeError> {
        let short = |_| DecodeError::Length(name);
        let count = body.try_get_u8().map_err(short)? as usize;
        if count > PEX_RECORDS_MAX {
            return Err(DecodeError::Field(name, "number of records"));
        }
        let mut records = Vec::with_capacity(count);
        for _ in 0..count {
            let len = body.try_get_u16().map_err(short)? as usize;
            records.extend(PeerRecord::decode(take(&mut body, len)?)?);
        }
        if body.has_remaining() {
            return Err(DecodeError::Length(name));
        }
        Ok(Self(records))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(address: &str) -> PeerRecord {
        PeerRecord {
            sequence: 1,
            expires: 2,
            resident: false,
            site: String::new(),
            addresses: vec![address.parse().expect("an address")],
            certificate: Bytes::from_static(b"c"),
            signature: [7; 64],
        }
    }

    #[test]
    fn addresses_no_host_can_have_are_refused() {
        for bad in [
            "0.0.0.0:1",
            "224.0.0.1:1",
            "255.255.255.255:1",
            "[::]:1",
            "[ff02::1]:1",
            "[::ffff:10.0.0.1]:1",
            "10.0.0.1:0",
        ] {
            let error = PeerRecord::decode(record(bad).encode().into()).expect_err(bad);
            assert_eq!(error, DecodeError::Field(NAME, "address"), "{bad}");
        }
        for good in ["10.0.0.1:4434", "[fe80::1]:4434", "127.0.0.1:1"] {
            let record = record(good);
            assert_eq!(PeerRecord::decode(record.encode().into()), Ok(Some(record)));
        }
    }

    #[test]
    fn a_record_of_a_later_form_is_skipped_and_the_others_are_read() {
        let good = record("10.0.0.1:1");
        let mut later = good.encode();
        later[0] = 9;
        let mut body = vec![2];
        for bytes in [later, good.encode()] {
            body.put_u16(bytes.len() as u16);
            body.put_slice(&bytes);
        }
        assert_eq!(PeerRecords::decode(NAME, body.clone().into()), Ok(PeerRecords(vec![good])));
        for cut in 0..body.len() {
            assert!(PeerRecords::decode(NAME, body[..cut].to_vec().into()).is_err(), "cut at {cut}");
        }
        body[0] = 9;
        assert!(PeerRecords::decode(NAME, body.into()).is_err(), "too many records");
    }
}
