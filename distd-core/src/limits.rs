//! Every bound on what a file or a peer may make us allocate or loop over, with its reason.

/// Largest chunk any product may ask for, bytes. Two of these fit in one QUIC receive window, and a
/// device holds at most a few dozen in memory.
pub const CHUNK_BYTES_MAX: usize = 1 << 20;

/// Smallest `min` of the cut parameters, bytes: the smallest window FastCDC works on.
pub const CHUNK_BYTES_MIN: usize = 64;

/// Largest frame body, bytes: one chunk of the largest size and its header.
pub const FRAME_BODY_MAX: usize = CHUNK_BYTES_MAX + 1024;

/// Most ranges in one REQUEST, CANCEL or DONT_HAVE frame: 64 KiB of body.
pub const RANGES_MAX: usize = 4096;

/// Most chunks one request stream may ask for. A batch bounds what a lost connection costs and what
/// a server queues for one stream.
pub const REQUEST_CHUNKS_MAX: u64 = 65_536;

/// Most node hashes, or held manifests, in one NODE_REQUEST.
pub const NODE_REQUEST_HASHES_MAX: usize = 16_384;

/// Most manifests a NODE_REQUEST may name as held. A device keeps two install slots and a few seeds.
pub const HELD_MANIFESTS_MAX: usize = 16;

/// Largest manifest node, bytes: `manifest::NODE_ENTRIES_MAX` entries of at most 56 bytes fit twice.
pub const NODE_BYTES_MAX: usize = 64 << 10;

/// Most levels below the root. Nodes hold at least two entries, so 2^64 chunks would need 64; a real
/// petabyte needs six.
pub const MANIFEST_LEVELS_MAX: u8 = 12;

/// Most bytes of manifest nodes that are fetched for one artifact: some five million chunks, 300 GB of 64 KiB each.
pub const MANIFEST_BYTES_MAX: u64 = 256 << 20;

/// Largest artifact, bytes: 16 TiB. Keeps every offset far from overflow.
pub const ARTIFACT_BYTES_MAX: u64 = 16 << 40;

/// Largest question for TUF metadata, bytes.
pub const METADATA_QUERY_MAX: usize = 16 << 10;

/// Largest piece of an answer in one frame, bytes.
pub const METADATA_PIECE_MAX: usize = 256 << 10;

/// Largest answer over all its frames, bytes: `releases.json` of some 20 000 releases.
pub const METADATA_ANSWER_MAX: usize = 16 << 20;

/// Most peer records in one PEX_REScert: how many neighbours a node is told of at once.
pub const PEX_RECORDS_MAX: usize = 8;

/// Most nodes one peer may say it shuns, in one frame and on one stream: a quarter of them all lying, of the neighbours a device comes to
/// know in a day.
pub const SHUN_NODES_MAX: usize = 64;

/// Most addresses in a peer record: two families, two interfaces.
pub const RECORD_ADDRESSES_MAX: usize = 4;

/// Longest name of a site, bytes.
pub const SITE_BYTES_MAX: usize = 64;

/// Longest certificate in a peer record, bytes. A node's has some 600.
pub const RECORD_CERTIFICATE_MAX: usize = 2048;

/// Longest a peer record may be from expiring, seconds. Whoever still runs makes another.
pub const RECORD_SECONDS_MAX: u64 = 2 * 3600;

/// Most nodes a directory remembers of one site; the one heard of longest ago goes first.
pub const DIRECTORY_NODES_MAX: usize = 1024;

/// Most sites a directory remembers; likewise.
pub const DIRECTORY_SITES_MAX: usize = 4096;

/// Most leases of one site in one swarm; above it requests are granted without one.
pub const LEASES_MAX: usize = 4096;

/// Longest product, version or channel name, bytes.
pub const NAME_BYTES_MAX: usize = 100;

/// Longest path in a tree listing or a region's name hint, bytes (Linux `PATH_MAX`).
pub const PATH_BYTES_MAX: usize = 4096;

/// Most regions a format reader may return; above it the artifact is one plain region.
pub const REGIONS_MAX: usize = 4 << 20;

/// Most entries of a tree listing.
pub const TREE_ENTRIES_MAX: usize = 4 << 20;

/// Largest tree listing, bytes. It is held in memory while a tree is written.
pub const TREE_LISTING_BYTES_MAX: u64 = 256 << 20;

/// Most raw bytes one patch rebuilds. With [`PATCH_BASE_BYTES_MAX`] it keeps applying a patch below 64 MiB
/// whatever the codec: base, target and the codec's own streams.
pub const PATCH_TARGET_BYTES_MAX: usize = 4 << 20;

/// Most raw bytes of base one patch may name.
pub const PATCH_BASE_BYTES_MAX: usize = 16 << 20;

/// Largest payload of a patch, bytes: it travels and is stored like a chunk.
pub const PATCH_PAYLOAD_BYTES_MAX: usize = CHUNK_BYTES_MAX;

/// Largest index of a patch set, packed or not, bytes: some ten million target chunks. It is held in memory while
/// the set is used.
pub const PATCH_INDEX_BYTES_MAX: u64 = 64 << 20;

/// Most patches of one set; each rebuilds something.
pub const PATCHES_MAX: usize = 1 << 20;

/// Most base chunks of one set, over all its patches: choosing looks at each. Ranges tell any number of them in a few bytes;
/// a set for each of ten million target chunks needs four at most.
pub const PATCH_SET_BASES_MAX: u64 = 1 << 26;

/// Longest view, bytes: of a larger packed file chunks or patches of packed bytes are sent. A device needs as much free
/// space for each view of a set while it applies the set.
pub const VIEW_BYTES_MAX: u64 = 1 << 30;

/// Ids from here on are no chunks of the origin: within one patch set they are the chunks of its views.
pub const VIEW_IDS_FROM: u64 = 1 << 60;
