use proptest::prelude::*;

use super::*;
use crate::tree::COMPONENT_BYTES_MAX;

/// Ticket of the golden file, with a signature of 70 equal bytes.
fn golden() -> SignedTicket {
    let mut key = [7; 33];
    key[0] = 2;
    let ticket = Ticket {
        key: ShareKey(key),
        id: TicketId([1, 2, 3, 4, 5, 6, 7, 8]),
        manifest: ManifestId([9; 32]),
        kind: SharedKind::Tree,
        bytes: 0x0102_0304_0506,
        not_after: 1_800_000_000,
        audience: Audience::Group { realm: [3; 32], group: "blue".parse().expect("a name") },
        once: true,
        name: SharedName::new("Bilder für Kathrin").expect("a name"),
        addresses: vec!["192.0.2.7:4433".into(), "[2001:db8::7]:4433".into(), "host.example:1".into()],
    };
    SignedTicket { body: ticket.encode(), ticket, signature: Bytes::from_static(&[0x30; 70]) }
}

#[test]
fn the_golden_ticket_reads_and_writes_the_same_text() {
    const TEXT: &str = include_str!("testdata/ticket_v1.txt");
    assert_eq!(golden().to_text(), TEXT.trim());
    assert_eq!(SignedTicket::from_text(TEXT), Ok(golden()));
}

#[test]
fn a_pasted_ticket_may_have_line_breaks_and_capitals() {
    let text = golden().to_text();
    let mut pasted = String::from(" \n");
    for (n, letter) in text.chars().enumerate() {
        pasted.push(letter.to_ascii_uppercase());
        if n % 20 == 7 {
            pasted.push_str("\r\n  ");
        }
    }
    assert_eq!(SignedTicket::from_text(&pasted), Ok(golden()));
}

#[test]
fn every_wrong_missing_or_added_letter_is_a_typo() {
    let text = golden().to_text();
    for at in PREFIX.len()..text.len() {
        let letter = text.as_bytes()[at];
        for other in [b'a', b'7', b'1', b'.', letter.wrapping_add(1)] {
            if other == letter {
                continue;
            }
            let mut wrong = text.clone().into_bytes();
            wrong[at] = other;
            let wrong = String::from_utf8(wrong).expect("ASCII");
            assert_eq!(SignedTicket::from_text(&wrong), Err(TicketTextError::Typo), "{at}: {other}");
        }
        let mut shorter = text.clone();
        shorter.remove(at);
        assert_eq!(SignedTicket::from_text(&shorter), Err(TicketTextError::Typo), "without {at}");
        assert_eq!(SignedTicket::from_text(&text[..at]), Err(TicketTextError::Typo), "cut at {at}");
        let mut longer = text.clone();
        longer.insert(at, 'q');
        assert_eq!(SignedTicket::from_text(&longer), Err(TicketTextError::Typo), "more at {at}");
        if let Some(next) = text.as_bytes().get(at + 1).filter(|next| **next != letter) {
            let mut swapped = text.clone().into_bytes();
            (swapped[at], swapped[at + 1]) = (*next, letter);
            let swapped = String::from_utf8(swapped).expect("ASCII");
            assert_eq!(SignedTicket::from_text(&swapped), Err(TicketTextError::Typo), "swapped at {at}");
        }
    }
    for other in ["", "distd-join-v1.abc", "distd-tickt-v1.abc", "hello"] {
        assert_eq!(SignedTicket::from_text(other), Err(TicketTextError::Prefix), "{other}");
    }
    let endless = format!("{PREFIX}{}", "a".repeat(1 << 20));
    assert_eq!(SignedTicket::from_text(&endless), Err(TicketTextError::TooLong));
}

#[test]
fn a_later_form_is_named() {
    let mut bytes = golden().encode().to_vec();
    bytes[0] = 9;
    let error = SignedTicket::decode(&bytes.into()).expect_err("not known");
    assert_eq!(error, TicketError::Form(9));
}

#[test]
fn names_that_leave_the_directory_and_addresses_without_a_port_are_refused() {
    for name in ["", ".", "..", "a/b", "/etc", "a\0b", "a\nb", "\u{1b}[2J", &"n".repeat(256)] {
        assert_eq!(SharedName::new(name), None, "{name:?}");
    }
    for name in ["a", "..a", "Ärger.iso", &"n".repeat(255)] {
        assert!(SharedName::new(name).is_some(), "{name:?}");
    }
    for address in ["", "host", "host:", ":1", "host:0", "host:65536", "ho st:1", "hôst:1", "host:1\n"] {
        assert!(!is_address(address), "{address:?}");
    }
    assert!(is_address("[fe80::1%eth0]:4433") && is_address("host:65535"));
}

#[test]
fn the_longest_ticket_fits_its_bound() {
    let mut signed = golden();
    let host = "h".repeat(ADDRESS_BYTES_MAX - 6);
    signed.ticket.addresses = vec![format!("{host}:65535"); TICKET_ADDRESSES_MAX];
    signed.ticket.name = SharedName::new(&"n".repeat(COMPONENT_BYTES_MAX)).expect("a name");
    let group = "g".repeat(crate::bounds::NAME_BYTES_MAX).parse().expect("a name");
    signed.ticket.audience = Audience::Group { realm: [0; 32], group };
    signed.body = signed.ticket.encode();
    signed.signature = Bytes::from_static(&[1; SIGNATURE_MAX]);
    assert_eq!(SignedTicket::from_text(&signed.to_text()), Ok(signed));
}

fn audience() -> impl Strategy<Value = Audience> {
    prop_oneof![
        Just(Audience::Anyone),
        (any::<[u8; 32]>(), any::<[u8; 16]>())
            .prop_map(|(realm, node)| Audience::Node { realm, node: NodeId(node) }),
        (any::<[u8; 32]>(), "[a-z][a-z0-9]{0,20}")
            .prop_map(|(realm, group)| Audience::Group { realm, group: group.parse().expect("a name") }),
    ]
}

proptest! {
    #[test]
    fn any_ticket_survives_its_text(
        key in any::<[u8; 32]>(),
        manifest in any::<[u8; 32]>(),
        (id, bytes, not_after, once, tree) in any::<([u8; 8], u64, u64, bool, bool)>(),
        audience in audience(),
        name in "[^/\\pC]{1,60}",
        ports in proptest::collection::vec(1u16.., 0..=TICKET_ADDRESSES_MAX),
        signature in proptest::collection::vec(any::<u8>(), 1..=SIGNATURE_MAX),
    ) {
        let Some(name) = SharedName::new(&name) else { return Ok(()) };
        let mut point = [2; 33];
        point[1..].copy_from_slice(&key);
        let ticket = Ticket {
            key: ShareKey(point),
            id: TicketId(id),
            manifest: ManifestId(manifest),
            kind: if tree { SharedKind::Tree } else { SharedKind::File },
            bytes,
            not_after,
            audience,
            once,
            name,
            addresses: ports.iter().map(|port| format!("host-{port}:{port}")).collect(),
        };
        let signed = SignedTicket { body: ticket.encode(), ticket, signature: signature.into() };
        prop_assert_eq!(SignedTicket::decode(&signed.encode()), Ok(signed.clone()));
        prop_assert_eq!(SignedTicket::from_text(&signed.to_text()), Ok(signed));
    }

    #[test]
    fn any_bytes_and_any_text_are_read_without_a_panic(
        bytes in proptest::collection::vec(any::<u8>(), 0..600),
        text in "\\PC{0,200}",
    ) {
        if let Ok(signed) = SignedTicket::decode(&bytes.clone().into()) {
            prop_assert_eq!(signed.encode(), Bytes::from(bytes.clone()));
        }
        let _ = SignedTicket::from_text(&text);
        let made = text::encode(&bytes);
        prop_assert!(!matches!(SignedTicket::from_text(&made), Err(TicketTextError::Typo)) || bytes.len() > TICKET_BYTES_MAX);
    }

    #[test]
    fn damaged_bytes_of_a_ticket_are_read_as_they_are_or_refused(
        at in 0usize..300,
        bit in 0u8..8,
        cut in 0usize..400,
    ) {
        let mut bytes = golden().encode().to_vec();
        let len = bytes.len();
        bytes[at % len] ^= 1 << bit;
        bytes.truncate(cut.max(1));
        if let Ok(signed) = SignedTicket::decode(&bytes.clone().into()) {
            prop_assert_eq!(signed.ticket.encode(), signed.body);
        }
    }
}
