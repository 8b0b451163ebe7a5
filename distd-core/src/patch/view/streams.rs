//! Views of files with deflate streams between other bytes: zip archives, and PNG files, which have
//! one zlib stream.
//!
//! Bytes that belong to no stream are in the view as they are, so that headers are paired like
//! everything else.

use std::io::{self, Write};
use std::ops::Range;

use super::png::{self, Framed};
use super::recipe::Pieces;
use super::zip;
use crate::cut::{ReadAt, gzip};

/// Bytes of the header before the deflate stream of a zlib stream (RFC 1950).
const ZLIB_HEAD: u64 = 2;

/// Streams with less plain text than this stay packed: unpacking them saves nothing.
const PLAIN_MIN: u64 = 64;

/// Number of failures after which the rest of a file stays as it is, because each costs time. A
/// failure is data that is not a stream, or a stream that cannot be packed again.
const FAILED_MAX: usize = 8;

pub(super) fn is_magic(head: &[u8]) -> bool {
    zip::is_magic(head) || png::is_magic(head)
}

fn magic<R: ReadAt + ?Sized>(file: &R) -> io::Result<[u8; 8]> {
    let mut head = [0; 8];
    if file.len() >= 8 {
        file.read_exact_at(&mut head, 0)?;
    }
    Ok(head)
}

/// Takes a file apart up to `until`, to its end, or to the limit of the view. Returns the offset
/// reached.
pub(super) fn run<R: ReadAt + ?Sized>(
    file: &R,
    until: u64,
    pieces: &mut Pieces,
    sink: &mut impl Write,
) -> io::Result<u64> {
    let head = magic(file)?;
    if png::is_magic(&head) {
        run_png(file, until, pieces, sink)
    } else if zip::is_magic(&head) {
        run_zip(file, until, pieces, sink)
    } else {
        Ok(0)
    }
}

fn run_zip<R: ReadAt + ?Sized>(
    file: &R,
    until: u64,
    pieces: &mut Pieces,
    sink: &mut impl Write,
) -> io::Result<u64> {
    let (mut at, mut failed) = (0, 0);
    while failed < FAILED_MAX
        && at < until
        && let Some(data) = zip::next_stream(file, at)?
    {
        if !pieces.copy(file, at..data.start, sink)? {
            return Ok(at);
        }
        at = data.start;
        let (end, plain) = gzip::stream(file, data.clone(), pieces.room(), &mut io::sink())?;
        match end {
            Some(_) if plain < PLAIN_MIN => {}
            Some(end) => {
                let (reached, is_whole) = pieces.stream(file, at..end, until, sink)?;
                if !is_whole && reached < until {
                    failed += 1;
                    pieces.lost += end - reached;
                }
                at = reached;
            }
            None => failed += 1,
        }
    }
    if at < until && pieces.copy(file, at..file.len(), sink)? {
        at = file.len();
    }
    Ok(at)
}

fn run_png<R: ReadAt + ?Sized>(
    file: &R,
    until: u64,
    pieces: &mut Pieces,
    sink: &mut impl Write,
) -> io::Result<u64> {
    let Some(framed) = Framed::find(file)?.filter(|framed| framed.len() > ZLIB_HEAD) else { return Ok(0) };
    let frames = framed.range();
    if !pieces.copy(file, 0..frames.start, sink)? {
        return Ok(0);
    }
    pieces.frames(framed.size, framed.len());
    pieces.copy(&framed, 0..ZLIB_HEAD, sink)?;
    let (reached, is_whole) = pieces.stream(&framed, ZLIB_HEAD..framed.len(), until, sink)?;
    let is_whole = is_whole
        && pieces.copy(&framed, reached..framed.len(), sink)?
        && pieces.copy(file, frames.end..file.len(), sink)?;
    // Another step may succeed where this one failed. The rest cannot become a literal, because the
    // chunks would stay open.
    Ok(if is_whole {
        file.len()
    } else if reached < until {
        0
    } else {
        reached
    })
}

/// Writes the view of an old file, or at least of its sound part, at most `max` bytes. Returns the
/// view's length. Memory: 400 KiB.
///
/// # Errors
/// Any error from reading the file or writing to `sink`.
pub(super) fn inflate<R: ReadAt + ?Sized>(file: &R, max: u64, sink: &mut impl Write) -> io::Result<u64> {
    let head = magic(file)?;
    let (mut at, mut total) = (0, 0);
    if png::is_magic(&head) {
        let Some(framed) = Framed::find(file)?.filter(|framed| framed.len() > ZLIB_HEAD) else {
            return Ok(0);
        };
        let frames = framed.range();
        total += copy(file, 0..frames.start, max, sink)?;
        total += copy(&framed, 0..ZLIB_HEAD, max - total, sink)?;
        let (end, plain) = gzip::stream(&framed, ZLIB_HEAD..framed.len(), max - total, sink)?;
        total += plain;
        let Some(end) = end else { return Ok(total) };
        total += copy(&framed, end..framed.len(), max - total, sink)?;
        at = frames.end;
    } else if zip::is_magic(&head) {
        while let Some(data) = zip::next_stream(file, at)? {
            total += copy(file, at..data.start, max - total, sink)?;
            let (end, plain) = gzip::stream(file, data, max - total, sink)?;
            total += plain;
            match end {
                Some(end) => at = end,
                None => return Ok(total),
            }
        }
    } else {
        return Ok(0);
    }
    Ok(total + copy(file, at..file.len(), max - total, sink)?)
}

/// Copies as much of a range as `max` allows; returns the number of bytes copied.
pub(super) fn copy<R: ReadAt + ?Sized>(
    file: &R,
    range: Range<u64>,
    max: u64,
    sink: &mut impl Write,
) -> io::Result<u64> {
    let len = (range.end - range.start).min(max);
    let mut buffer = vec![0; usize::try_from(len).unwrap_or(usize::MAX).min(64 << 10)];
    let mut done = 0;
    while done < len {
        let here = buffer.len().min(usize::try_from(len - done).unwrap_or(usize::MAX));
        file.read_exact_at(&mut buffer[..here], range.start + done)?;
        sink.write_all(&buffer[..here])?;
        done += here as u64;
    }
    Ok(len)
}
