//! Unpacking of index files, with a bound on what comes out.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::process::{Child, ChildStdout, Command, Stdio};

use miniz_oxide::inflate::stream::{InflateState, inflate};
use miniz_oxide::{DataFormat, MZError, MZFlush, MZStatus};

/// Most bytes that an index unpacks to. The largest of Debian, `Contents`, is never unpacked; the
/// largest that is, `Packages` of `main`, has 50 MB.
pub(super) const UNPACKED_BYTES_MAX: u64 = 1 << 30;

/// Memory that xz may use: the most that `xz -9` needs.
const XZ_MEMORY_MAX: u64 = 80 << 20;

/// Largest window of zstd, as a power of two: that of `zstd --ultra -22`.
const ZSTD_WINDOW_LOG_MAX: u32 = 27;

/// Packing of an index file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Packing {
    /// Not packed.
    Plain,
    /// gzip, `.gz`.
    Gzip,
    /// xz, `.xz`, and its predecessor, `.lzma`.
    Xz,
    /// bzip2, `.bz2`.
    Bzip2,
    /// zstd, `.zst`.
    Zstd,
    /// lz4's frames, `.lz4`.
    Lz4,
}

impl Packing {
    /// Splits the name of a file into its stem and its packing.
    pub fn of(name: &str) -> (&str, Self) {
        for (suffix, packing) in [
            (".gz", Self::Gzip),
            (".xz", Self::Xz),
            (".lzma", Self::Xz),
            (".bz2", Self::Bzip2),
            (".zst", Self::Zstd),
            (".lz4", Self::Lz4),
        ] {
            if let Some(stem) = name.strip_suffix(suffix) {
                return (stem, packing);
            }
        }
        (name, Self::Plain)
    }

    /// Number of the packing in a table of names.
    pub fn number(self) -> u8 {
        match self {
            Self::Plain => 0,
            Self::Gzip => 1,
            Self::Xz => 2,
            Self::Bzip2 => 3,
            Self::Zstd => 4,
            Self::Lz4 => 5,
        }
    }

    /// The packing with this number; `None` for one of a later version.
    pub fn of_number(number: u8) -> Option<Self> {
        [Self::Plain, Self::Gzip, Self::Xz, Self::Bzip2, Self::Zstd, Self::Lz4]
            .into_iter()
            .find(|packing| packing.number() == number)
    }

    /// Reads what is packed in `file`. The reader ends with an error beyond
    /// [`UNPACKED_BYTES_MAX`].
    ///
    /// # Errors
    /// When the unpacker cannot start.
    pub fn reader(self, file: File) -> io::Result<Box<dyn BufRead>> {
        let packed = BufReader::with_capacity(64 << 10, file);
        Ok(match self {
            Self::Plain => bounded(packed),
            Self::Gzip => bounded(Gunzip::new(packed)),
            Self::Xz => {
                let flags = liblzma::stream::CONCATENATED;
                let stream = liblzma::stream::Stream::new_auto_decoder(XZ_MEMORY_MAX, flags);
                bounded(liblzma::bufread::XzDecoder::new_stream(packed, stream.map_err(io::Error::other)?))
            }
            Self::Bzip2 => bounded(Bunzip::start(packed.into_inner())?),
            Self::Zstd => {
                let mut decoder = zstd::stream::read::Decoder::with_buffer(packed)?;
                decoder.window_log_max(ZSTD_WINDOW_LOG_MAX)?;
                bounded(decoder)
            }
            Self::Lz4 => bounded(lzzzz::lz4f::BufReadDecompressor::new(packed).map_err(io::Error::other)?),
        })
    }
}

fn bounded(reader: impl Read + 'static) -> Box<dyn BufRead> {
    Box::new(BufReader::with_capacity(64 << 10, Bounded { reader, left: UNPACKED_BYTES_MAX }))
}

/// Reader that fails beyond a number of bytes.
struct Bounded<R> {
    reader: R,
    left: u64,
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let read = self.reader.read(out)?;
        self.left = self.left.checked_sub(read as u64).ok_or_else(|| {
            io::Error::new(io::ErrorKind::FileTooLarge, "the index unpacks to more than 1 GiB")
        })?;
        Ok(read)
    }
}

/// Reader of gzip members one behind the other. Their checksums are not looked at: the hash of the
/// file was.
struct Gunzip<R> {
    packed: R,
    /// State of the member under way; `None` before a member.
    state: Option<Box<InflateState>>,
    is_first: bool,
}

impl<R: BufRead> Gunzip<R> {
    fn new(packed: R) -> Self {
        Self { packed, state: None, is_first: true }
    }

    /// Reads the header of a member; false at the end of the file.
    fn header(&mut self) -> io::Result<bool> {
        let wrong = || io::Error::new(io::ErrorKind::InvalidData, "this is no gzip file");
        if self.packed.fill_buf()?.is_empty() {
            return if self.is_first { Err(wrong()) } else { Ok(false) };
        }
        let mut head = [0; 10];
        self.packed.read_exact(&mut head)?;
        let [0x1f, 0x8b, 8, flags, ..] = head else { return Err(wrong()) };
        if flags & 4 != 0 {
            let mut length = [0; 2];
            self.packed.read_exact(&mut length)?;
            let length = u64::from(u16::from_le_bytes(length));
            io::copy(&mut self.packed.by_ref().take(length), &mut io::sink())?;
        }
        for flag in [8, 16] {
            if flags & flag != 0 {
                let mut byte = [1];
                while byte != [0] {
                    self.packed.read_exact(&mut byte)?;
                }
            }
        }
        if flags & 2 != 0 {
            self.packed.read_exact(&mut [0; 2])?;
        }
        self.is_first = false;
        self.state = Some(InflateState::new_boxed(DataFormat::Raw));
        Ok(true)
    }
}

impl<R: BufRead> Read for Gunzip<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        loop {
            if self.state.is_none() && !self.header()? {
                return Ok(0);
            }
            let Some(state) = &mut self.state else { return Ok(0) };
            let input = self.packed.fill_buf()?;
            let is_over = input.is_empty();
            let step = inflate(state, input, out, MZFlush::None);
            self.packed.consume(step.bytes_consumed);
            match step.status {
                Ok(MZStatus::StreamEnd) => {
                    self.state = None;
                    self.packed.read_exact(&mut [0; 8])?;
                }
                Ok(MZStatus::Ok) | Err(MZError::Buf) if !is_over => {}
                _ => return Err(io::Error::new(io::ErrorKind::InvalidData, "the gzip file is damaged")),
            }
            if step.bytes_written > 0 || out.is_empty() {
                return Ok(step.bytes_written);
            }
        }
    }
}

/// Reader of what the program `bzip2` unpacks: archives have used xz since 2013, and no library
/// that distd has reads bzip2.
struct Bunzip {
    child: Child,
    out: ChildStdout,
}

impl Bunzip {
    fn start(packed: File) -> io::Result<Self> {
        let mut command = Command::new("bzip2");
        command.arg("-dc").stdin(packed).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn()?;
        let out = child.stdout.take().ok_or_else(|| io::Error::other("bzip2 has no output"))?;
        Ok(Self { child, out })
    }
}

impl Read for Bunzip {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let read = self.out.read(out)?;
        if read == 0 && !out.is_empty() && !self.child.wait()?.success() {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the bzip2 file is damaged"));
        }
        Ok(read)
    }
}

impl Drop for Bunzip {
    fn drop(&mut self) {
        // The program may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Seek, Write};

    use super::*;

    fn packed_by(program: &str, args: &[&str], content: &[u8]) -> Option<File> {
        let mut plain = tempfile::tempfile().expect("a file");
        plain.write_all(content).expect("write");
        plain.rewind().expect("rewind");
        let out = tempfile::tempfile().expect("a file");
        let mut command = Command::new(program);
        command.args(args).stdin(plain).stdout(out.try_clone().expect("a handle"));
        let Ok(status) = command.status() else {
            eprintln!("NOT RUN: {program} is missing");
            return None;
        };
        assert!(status.success(), "{program}");
        let mut out = out;
        out.rewind().expect("rewind");
        Some(out)
    }

    fn unpacked(packing: Packing, file: File) -> io::Result<Vec<u8>> {
        let mut out = Vec::new();
        packing.reader(file)?.read_to_end(&mut out)?;
        Ok(out)
    }

    #[test]
    fn what_the_programs_pack_is_unpacked_and_a_cut_file_is_an_error() {
        let content: Vec<u8> = (0..300_000u32).flat_map(|n| n.to_string().into_bytes()).collect();
        for (program, args, packing) in [
            ("cat", &[][..], Packing::Plain),
            ("gzip", &["-9c"], Packing::Gzip),
            ("xz", &["-c"], Packing::Xz),
            ("xz", &["-c", "--format=lzma"], Packing::Xz),
            ("bzip2", &["-c"], Packing::Bzip2),
            ("zstd", &["-qc"], Packing::Zstd),
            ("lz4", &["-qc"], Packing::Lz4),
        ] {
            let Some(file) = packed_by(program, args, &content) else { continue };
            let length = file.metadata().expect("a length").len();
            let cut = file.try_clone().expect("a handle");
            assert!(unpacked(packing, file).expect("unpacks") == content, "{program}");
            // The library of lz4 takes the end of the file for the end of the frame. An index with
            // the right hash is whole.
            if matches!(packing, Packing::Plain | Packing::Lz4) {
                continue;
            }
            cut.set_len(length / 2).expect("cut");
            let mut cut = cut;
            cut.rewind().expect("rewind");
            assert!(unpacked(packing, cut).is_err(), "{program}: half of a file");
        }
    }

    #[test]
    fn members_of_gzip_follow_each_other_and_headers_may_have_names() {
        let mut file = tempfile::NamedTempFile::new().expect("a file");
        for part in [&b"first "[..], b"second"] {
            let mut plain = packed_by("gzip", &["-c"], part).expect("gzip is essential");
            io::copy(&mut plain, &mut file).expect("copy");
        }
        assert_eq!(unpacked(Packing::Gzip, file.reopen().expect("open")).expect("unpacks"), b"first second");
        let named = tempfile::Builder::new().suffix(".txt").tempfile().expect("a file");
        std::fs::write(named.path(), "named").expect("write");
        assert!(Command::new("gzip").arg(named.path()).status().expect("gzip").success());
        let packed = File::open(named.path().with_extension("txt.gz")).expect("open");
        assert_eq!(unpacked(Packing::Gzip, packed).expect("unpacks"), b"named");
        let _ = std::fs::remove_file(named.path().with_extension("txt.gz"));
    }

    #[test]
    fn more_than_the_bound_is_an_error() {
        let mut reader = Bounded { reader: io::repeat(0), left: 10 };
        assert_eq!(reader.read(&mut [0; 10]).expect("within"), 10);
        assert!(reader.read(&mut [0; 1]).is_err());
    }

    #[test]
    fn names_tell_the_packing() {
        assert_eq!(Packing::of("Packages.xz"), ("Packages", Packing::Xz));
        assert_eq!(Packing::of("Packages"), ("Packages", Packing::Plain));
        for number in 0..6 {
            assert_eq!(Packing::of_number(number).map(Packing::number), Some(number));
        }
        assert_eq!(Packing::of_number(6), None);
    }
}
