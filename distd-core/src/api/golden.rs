//! Bodies byte for byte: what older servers and clients send and expect.

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::*;
use crate::cut::CutParams;
use crate::fleet::Right;
use crate::packing::Codec;
use crate::role::Role;
use crate::{ArtifactHash, ChunkHash, ManifestId};

/// Checks that `value` is written as `json`, and that `json` is read as `value`.
fn both<T: Serialize + DeserializeOwned>(value: &T, json: &str) {
    assert_eq!(serde_json::to_string(value).expect("serializes"), json);
    let again: T = serde_json::from_str(json).expect("parses");
    assert_eq!(serde_json::to_string(&again).expect("serializes"), json);
}

const HEX: &str = "0707070707070707070707070707070707070707070707070707070707070707";

#[test]
fn answers_are_these_texts() {
    let cut = Cut::from(CutParams::default());
    let product = Product { name: "os".into(), cut, created: 5, file_name: None, retention: None };
    let named = Product { file_name: Some("os_@v.erofs".into()), ..product.clone() };
    both(
        &named,
        r#"{"name":"os","cut":{"min":4096,"avg":16384,"max":65536},"created":5,"file_name":"os_@v.erofs"}"#,
    );
    both(&FileName { name: "os_@v.erofs".into() }, r#"{"name":"os_@v.erofs"}"#);
    both(
        &ProductList { products: vec![product] },
        r#"{"products":[{"name":"os","cut":{"min":4096,"avg":16384,"max":65536},"created":5}]}"#,
    );
    let release = Release {
        product: "os".into(),
        version: "1".into(),
        kind: ReleaseKind::File.into(),
        manifest: ManifestId([7; 32]),
        blake3: ArtifactHash([7; 32]),
        bytes: 1,
        chunks: 2,
        created: 3,
        sequence: Some(4),
        damaged: false,
        withdrawn: None,
        removed_at: None,
        pinned: None,
        channels: Vec::new(),
    };
    let plain = format!(
        r#"{{"product":"os","version":"1","kind":"file","manifest":"{HEX}","blake3":"{HEX}","bytes":1,"chunks":2,"created":3,"sequence":4}}"#
    );
    both(&release, &plain);
    let listed = Release { damaged: true, channels: vec!["stable".into()], ..release };
    both(&listed, &plain.replace('}', r#","damaged":true,"channels":["stable"]}"#));
    let channel = Channel {
        product: "os".into(),
        channel: "stable".into(),
        version: "1".into(),
        manifest: ManifestId([7; 32]),
        counter: 9,
        updated: 3,
        downgrade_from: None,
        approval: false,
    };
    both(
        &channel,
        &format!(
            r#"{{"product":"os","channel":"stable","version":"1","manifest":"{HEX}","counter":9,"updated":3,"downgrade_from":null}}"#
        ),
    );
    let token = Token {
        id: "a".into(),
        label: "l".into(),
        scopes: vec![Scope::Read.into(), Scope::Admin.into()],
        products: vec!["*".into()],
        created: 1,
        expires: None,
        revoked: Some(2),
        state: TokenState::Revoked.into(),
    };
    both(
        &token,
        r#"{"id":"a","label":"l","scopes":["read","admin"],"products":["*"],"created":1,"expires":null,"revoked":2,"state":"revoked"}"#,
    );
    let node = Node {
        id: "0a".into(),
        role: Role::Leaf.into(),
        label: "l".into(),
        enrolled: 1,
        cert_expires: 2,
        revoked: None,
        labels: NodeLabels { operator: [("a".into(), "1".into())].into(), ..NodeLabels::default() },
        reported: None,
        running: Vec::new(),
        ddi: false,
    };
    both(
        &node,
        r#"{"id":"0a","role":"leaf","label":"l","enrolled":1,"cert_expires":2,"revoked":null,"labels":{"token":{},"operator":{"a":"1"},"facts":{}},"reported":null,"running":[]}"#,
    );
    let grant = GrantInfo {
        id: 7,
        group: "tills".into(),
        rights: vec![Right::Read.into()],
        releases: "os:stable".into(),
        until: None,
        by_certificate: false,
        created: Some(3),
        created_by: "me".into(),
        state: GrantState::Valid.into(),
    };
    both(
        &grant,
        r#"{"id":7,"group":"tills","rights":["read"],"releases":"os:stable","until":null,"by_certificate":false,"created":3,"created_by":"me","state":"valid"}"#,
    );
    let group = Group { name: "tills".into(), selector: Some("a".into()), listed: None, grants: vec![7] };
    both(&group, r#"{"name":"tills","selector":"a","listed":null,"grants":[7]}"#);
    both(&RevokedNode { join_tokens: vec!["x".into()] }, r#"{"join_tokens":["x"]}"#);
    let upload = Upload { upload: "u".into(), cut: CutParams::default(), resumed: true };
    both(&upload, r#"{"upload":"u","cut":{"min":4096,"avg":16384,"max":65536},"resumed":true}"#);
    let error = ErrorDetail { code: code::CONFLICT.into(), message: "m".into(), next: "n".into() };
    both(&ErrorBody { error }, r#"{"error":{"code":"conflict","message":"m","next":"n"}}"#);
}

#[test]
fn requests_are_these_texts_and_refuse_unknown_fields() {
    both(&Move { version: "1".into(), downgrade: false }, r#"{"version":"1"}"#);
    both(&Move { version: "1".into(), downgrade: true }, r#"{"version":"1","downgrade":true}"#);
    both(&Wanted { from: None }, r#"{"from":null}"#);
    both(&Announced { bytes: Some(7) }, r#"{"bytes":7}"#);
    both(&RevokeNode { tokens: true }, r#"{"tokens":true}"#);
    let new = NewToken { label: "l".into(), scopes: vec![Scope::Read], products: None, expires_in: None };
    both(&new, r#"{"label":"l","scopes":["read"]}"#);
    let new = NewToken { products: Some(vec!["os".into()]), expires_in: Some(60), ..new };
    both(&new, r#"{"label":"l","scopes":["read"],"products":["os"],"expires_in":60}"#);
    let join = NewJoinToken {
        role: Role::Leaf,
        uses: Some(2),
        expires_in: Some(60),
        label: "l".into(),
        labels: Default::default(),
    };
    both(&join, r#"{"role":"leaf","uses":2,"expires_in":60,"label":"l"}"#);
    let join = NewJoinToken { labels: [("site".into(), "7".into())].into(), ..join };
    both(&join, r#"{"role":"leaf","uses":2,"expires_in":60,"label":"l","labels":{"site":"7"}}"#);
    both(&NewGroup { selector: Some("a=1".into()), nodes: None }, r#"{"selector":"a=1"}"#);
    both(&NewGroup { selector: None, nodes: Some(vec!["00".into()]) }, r#"{"nodes":["00"]}"#);
    let change = ChangeLabels { set: [("a".into(), "1".into())].into(), remove: vec!["b".into()] };
    both(&change, r#"{"set":{"a":"1"},"remove":["b"]}"#);
    let grants = NewGrants {
        group: "tills".into(),
        releases: vec!["os:stable".into()],
        rights: None,
        until: None,
        by_certificate: false,
    };
    both(&grants, r#"{"group":"tills","releases":["os:stable"]}"#);
    let grants =
        NewGrants { rights: Some(vec![Right::Read]), until: Some(7), by_certificate: true, ..grants };
    both(
        &grants,
        r#"{"group":"tills","releases":["os:stable"],"rights":["read"],"until":7,"by_certificate":true}"#,
    );
    assert!(serde_json::from_str::<NewGroup>(r#"{"selectro":"a"}"#).is_err());
    assert!(serde_json::from_str::<Move>(r#"{"version":"1","downgarde":true}"#).is_err());
    let cut = r#"{"min":4096,"avg":16384,"max":65536,"new":1}"#;
    assert!(serde_json::from_str::<Cut>(cut).is_ok(), "a later origin may say more");
    assert!(serde_json::from_str::<NewProduct>(&format!(r#"{{"name":"os","cut":{cut}}}"#)).is_err());
    assert!(serde_json::from_str::<NewToken>(r#"{"label":"l","scopes":["raed"]}"#).is_err());
}

#[test]
fn an_answer_of_an_older_or_newer_origin_is_read() {
    let old = r#"{"id":"a","label":"l","scopes":["read","future"],"created":1,"expires":null,"revoked":null,"new":1}"#;
    let token: Token = serde_json::from_str(old).expect("a token");
    assert_eq!((token.products, token.state), (vec!["*".to_owned()], Word::default()));
    let made: MadeJoinToken = serde_json::from_str(r#"{"token":"t"}"#).expect("a join token");
    assert_eq!(made.id, None);
    let old = r#"{"id":"0a","role":"leaf","label":"l","enrolled":1,"cert_expires":2,"revoked":null}"#;
    let node: Node = serde_json::from_str(old).expect("a node");
    assert_eq!(node.labels, NodeLabels::default());
    let later =
        NodeLabels { token: [("A".into(), "x".into()), ("a".into(), "1".into())].into(), ..node.labels };
    assert_eq!(later.parsed().token.len(), 1, "a key that only a later origin knows");
}

#[test]
fn records_and_commits_are_these_bytes() {
    let hash = ChunkHash([9; 32]);
    let head = RecordHead { hash, codec: Codec::Zstd, raw_len: 0x0102, stored_len: 0x0101 };
    let mut bytes = Vec::new();
    head.encode_into(&mut bytes);
    let tail = [&[Codec::Zstd.code()][..], &[0, 0, 1, 2], &[0, 0, 1, 1]].concat();
    assert_eq!((&bytes[..32], &bytes[32..]), (&[9; 32][..], &tail[..]));
    let whole: [u8; RECORD_HEAD_BYTES] = bytes.try_into().expect("a head");
    assert_eq!(RecordHead::decode(&whole), Ok(head));
    for (at, value, error) in
        [(32, 99, RecordError::Codec), (40, 3, RecordError::Length), (33, 9, RecordError::Length)]
    {
        let mut wrong = whole;
        wrong[at] = value;
        assert_eq!(RecordHead::decode(&wrong), Err(error), "byte {at}");
    }

    let commit = Commit {
        listing_bytes: Some(300),
        cut: CutParams::default(),
        bytes: 70_000,
        blake3: ArtifactHash([7; 32]),
    };
    let runs = [Run { hash, len: 5, repeat: 6 }, Run { hash, len: 7, repeat: 1 }];
    let mut body = commit.head(2 * RUN_BYTES as u32);
    let expected = format!(
        "86a46b696e64a474726565ad6c697374696e675f6279746573cd012ca363757493cd1000cd4000ce00010000a56279746573ce00011170\
         a6626c616b6533c420{HEX}a66368756e6b73c450"
    );
    assert_eq!(hex::encode(&body), expected);
    runs.iter().for_each(|run| run.encode_into(&mut body));
    assert_eq!(Commit::decode(&body).expect("a commit"), (commit, runs.to_vec()));

    let short = &body[..body.len() - 1];
    assert!(matches!(Commit::decode(short), Err(CommitError::Malformed(_))));
    let many = Run { hash, len: 5, repeat: u32::MAX };
    let mut body = commit.head(RUN_BYTES as u32);
    many.encode_into(&mut body);
    assert!(matches!(Commit::decode(&body), Err(CommitError::Chunks(_))));
    let mut body = commit.head(RUN_BYTES as u32 + 1);
    many.encode_into(&mut body);
    body.push(0);
    assert!(matches!(Commit::decode(&body), Err(CommitError::List)));
}
