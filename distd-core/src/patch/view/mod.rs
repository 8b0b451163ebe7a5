//! Views: the unpacked side of packed files.
//!
//! A file of gzip members (an initrd, a changelog) changes everywhere when one byte in it does. Its view
//! is the concatenated plain text of its members; a **recipe** says how to pack it again, bit for bit. The view of
//! the old release and that of the new one are paired like any other bytes; the new view is rebuilt in passing,
//! packed again and written.
//!
//! The origin makes recipes ([`unpack`]) and offers none it has not tried with the code the device runs
//! ([`repack`]). A device unpacks its own old file with [`inflate`], an order of magnitude quicker.
//!
//! Memory: unpacking and packing again hold one piece at a time, at most [`PIECE_PLAIN_MAX`] of plain text and what
//! the packer keeps beside it: 8 MB in all to pack the reference initrd (130 MB of view), 10 MB to take it apart.

mod cpio;
mod files;
mod gzip;
mod recipe;

pub use cpio::parts;
pub use files::{Joined, PackedFile, packed_files};
pub use gzip::inflate;
pub use recipe::{LITERAL_MAX, PIECE_PLAIN_MAX, RECIPE_MAX, RecipeError, Unpacked, repack, unpack};
