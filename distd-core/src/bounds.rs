//! Bounds on everything a file or a peer can make us allocate or loop over.

/// Largest chunk a product may ask for, bytes. Two of these fit in one QUIC receive window, and a
/// device holds at most a few dozen in memory.
pub const CHUNK_BYTES_MAX: usize = 1 << 20;

/// Smallest `min` of the cut parameters, bytes: the smallest window FastCDC works on.
pub const CHUNK_BYTES_MIN: usize = 64;

/// Largest frame body, bytes: one chunk of the largest size and its header.
pub const FRAME_BODY_MAX: usize = CHUNK_BYTES_MAX + 1024;

/// Most ranges in one HAVE, REQUEST, CANCEL, DONT_HAVE or COST_REQUEST frame: 64 KiB of body.
pub const RANGES_MAX: usize = 4096;

/// Most chunks one request stream may ask for. The bound limits the loss when a connection breaks
/// and the queue a server keeps for one stream.
pub const REQUEST_CHUNKS_MAX: u64 = 65_536;

/// Most node hashes in one NODE_REQUEST.
pub const NODE_REQUEST_HASHES_MAX: usize = 16_384;

/// Most manifests a NODE_REQUEST may name as held. A device keeps two install slots and a few
/// seeds.
pub const HELD_MANIFESTS_MAX: usize = 16;

/// Largest manifest node, bytes: room for four times `manifest::NODE_ENTRIES_MAX` entries of at
/// most 56 bytes.
pub const NODE_BYTES_MAX: usize = 64 << 10;

/// Most levels below the root. Every node but the last of its level has at least 16 entries, so
/// twelve levels hold more than 2^48 chunks, far more than the largest artifact has.
pub const MANIFEST_LEVELS_MAX: u8 = 12;

/// Most bytes of manifest nodes to fetch for one artifact. They describe some five million chunks,
/// or 300 GB in chunks of 64 KiB.
pub const MANIFEST_BYTES_MAX: u64 = 256 << 20;

/// Largest artifact, bytes: 16 TiB. Keeps every offset far from overflow.
pub const ARTIFACT_BYTES_MAX: u64 = 16 << 40;

/// Largest question for TUF metadata, bytes.
pub const METADATA_QUERY_MAX: usize = 16 << 10;

/// Largest piece of an answer in one frame, bytes.
pub const METADATA_PIECE_MAX: usize = 256 << 10;

/// Largest answer over all its frames, bytes.
pub const METADATA_ANSWER_MAX: usize = 16 << 20;

/// Most peer records in one PEX_REScert, which is how many neighbours are advertised to a node at
/// once.
pub const PEX_RECORDS_MAX: usize = 8;

/// Most nodes one peer may say it shuns, in one frame and on one stream. That is enough for a
/// device that meets 256 neighbours in a day, of which a quarter send wrong bytes.
pub const SHUN_NODES_MAX: usize = 64;

/// Most addresses in a peer record: two address families on two interfaces.
pub const RECORD_ADDRESSES_MAX: usize = 4;

/// Longest name of a site, bytes.
pub const SITE_BYTES_MAX: usize = 64;

/// Longest certificate in a peer record, bytes. A node's certificate has about 600.
pub const RECORD_CERTIFICATE_MAX: usize = 2048;

/// Longest time from now until a peer record expires, seconds. A node that is still running signs a
/// new record before that.
pub const RECORD_SECONDS_MAX: u64 = 2 * 3600;

/// Most nodes a directory remembers of one site. A further one replaces the node whose last record
/// is the oldest.
pub const DIRECTORY_NODES_MAX: usize = 1024;

/// Most sites a directory remembers. A further one replaces the site whose last record is the
/// oldest.
pub const DIRECTORY_SITES_MAX: usize = 4096;

/// Most leases of one site in one swarm, each for the chunks of one batch or announcement. Requests
/// beyond it are granted without a lease.
pub const LEASES_MAX: usize = 4096;

/// Longest product, version or channel name, bytes.
pub const NAME_BYTES_MAX: usize = 100;

/// Longest path in a tree listing or a region's name hint, bytes (Linux `PATH_MAX`).
pub const PATH_BYTES_MAX: usize = 4096;

/// Most regions a format reader may return. An artifact with more becomes one plain
/// region; a directory with more is refused.
pub const REGIONS_MAX: usize = 4 << 20;

/// Most entries of a tree listing.
pub const TREE_ENTRIES_MAX: usize = 4 << 20;

/// Largest tree listing, bytes. It is held in memory while a tree is written.
pub const TREE_LISTING_BYTES_MAX: u64 = 256 << 20;

/// Most raw bytes that one patch rebuilds in memory; methods that stream a view are bounded by
/// [`VIEW_BYTES_MAX`]. Together with [`PATCH_BASE_BYTES_MAX`] the bound keeps
/// applying a patch below 64 MiB with any codec: base, target and the codec's own streams.
pub const PATCH_TARGET_BYTES_MAX: usize = 4 << 20;

/// Most raw bytes of base one patch may name.
pub const PATCH_BASE_BYTES_MAX: usize = 16 << 20;

/// Most raw bytes of base, and of target, of a patch for one large file, whose method states its
/// memory. An executable of this length is rare; a kernel has 60 MB.
pub const PATCH_LARGE_BYTES_MAX: usize = 256 << 20;

/// Most bytes of a large patch's payload with its pieces. A file that changed by more is better
/// sent in small patches.
pub const PATCH_LARGE_PAYLOAD_BYTES_MAX: usize = 32 << 20;

/// Largest payload of a patch, bytes: a payload is sent and stored as a chunk.
pub const PATCH_PAYLOAD_BYTES_MAX: usize = CHUNK_BYTES_MAX;

/// Largest index of a patch set, packed or not, bytes. It describes some ten million target chunks
/// and is held in memory while the set is in use.
pub const PATCH_INDEX_BYTES_MAX: u64 = 64 << 20;

/// Most patches of one set. Each patch rebuilds at least one chunk.
pub const PATCHES_MAX: usize = 1 << 20;

/// Most base chunks of one set, over all its patches. Choosing patches looks at each base chunk,
/// and ranges can name any number of them in a few bytes. A set for ten million target chunks needs
/// at most four base chunks for each of them.
pub const PATCH_SET_BASES_MAX: u64 = 1 << 26;

/// Longest view, bytes; the origin also bounds all views of one release together by it. A packed
/// file with a longer view is sent as chunks, or as patches of its
/// packed bytes. A device needs this much free space for each view of a set while it applies the
/// set.
pub const VIEW_BYTES_MAX: u64 = 1 << 30;

/// Most bytes of a capability in a HANDSHAKE or CAPABILITY frame. The longest has about 2230.
pub const CAPABILITY_FRAME_MAX: usize = 4096;

/// Most manifests in one capability: a release and the patch sets that lead to it. Also the most
/// manifests and targets in one question for capabilities.
pub const CAPABILITY_MANIFESTS_MAX: usize = 64;

/// Most labels of a node from each source, and of a join token.
pub const LABELS_MAX: usize = 32;

/// Longest key of a label, bytes.
pub const LABEL_KEY_MAX: usize = 63;

/// Longest value of a label, bytes.
pub const LABEL_VALUE_MAX: usize = 63;

/// Longest selector, bytes.
pub const SELECTOR_BYTES_MAX: usize = 1024;

/// Most terms of a selector.
pub const SELECTOR_TERMS_MAX: usize = 32;

/// Most values of one term of a selector.
pub const SELECTOR_VALUES_MAX: usize = 64;

/// Most products to which one node is pinned.
pub const PINS_MAX: usize = 32;

/// Most versions of which a rollout requires one.
pub const ROLLOUT_REQUIRES_MAX: usize = 8;

/// Most groups of a realm.
pub const GROUPS_MAX: usize = 1024;

/// Most node ids in a group that lists its nodes.
pub const GROUP_NODES_MAX: usize = 10_000;

/// Most grants of a realm.
pub const GRANTS_MAX: usize = 4096;

/// Most addresses of the sharer in a ticket.
pub const TICKET_ADDRESSES_MAX: usize = 8;

/// Longest address in a ticket, bytes: it still has a length of one byte.
pub const ADDRESS_BYTES_MAX: usize = 253;
